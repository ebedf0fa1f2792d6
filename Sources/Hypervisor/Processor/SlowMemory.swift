// Accesses that miss the TLB: pages that are no RAM, accesses that cross pages, code that is written.
// Source: Intel SDM vol. 1 §3.3.7 (canonical addresses), vol. 3 §4.7, §11.6 (self-modifying code).
// Modelled: both pages are translated before any byte moves; not modelled: atomicity over two pages.
// What is no RAM is read and written in naturally aligned parts of at most 8 bytes.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// Throws unless `linear` is canonical.
    func checkCanonical(_ linear: UInt64, segment: Int) throws(Fault) {
        guard UInt64(bitPattern: Int64(bitPattern: linear &<< 16) &>> 16) == linear else {
            throw raise(segment == segmentSS ? 12 : 13, error: 0)
        }
    }

    /// The linear address `bytes` further on; legacy modes wrap at 4 GiB.
    func advance(_ linear: UInt64, _ bytes: Int) -> UInt64 {
        let next = linear &+ UInt64(truncatingIfNeeded: bytes)
        return self.pointee.code_size == 8 ? next : next & 0xFFFF_FFFF
    }

    /// Loads 1 to 8 bytes.
    @inline(never) func loadSlow(_ linear: UInt64, _ bytes: Int, mode: UInt8, segment: Int) throws(Fault) -> UInt64 {
        try checkCanonical(linear, segment: segment)
        if isWatched, mode == self.pointee.tlb_mode { try watch(linear, bytes, write: false) }
        let first = 4096 - Int(truncatingIfNeeded: linear & 0xFFF)
        if bytes <= first { return loadPlace(try place(linear, write: false, mode: mode), bytes) }
        let behind = advance(linear, first)
        try checkCanonical(behind, segment: segment)
        let low = try place(linear, write: false, mode: mode)
        let high = try place(behind, write: false, mode: mode)
        return loadPlace(low, first) | loadPlace(high, bytes - first) &<< UInt64(first * 8)
    }

    /// Stores 1 to 8 bytes, all or none.
    @inline(never) func storeSlow(
        _ value: UInt64, _ linear: UInt64, _ bytes: Int, mode: UInt8, segment: Int
    ) throws(Fault) {
        try checkCanonical(linear, segment: segment)
        if isWatched, mode == self.pointee.tlb_mode { try watch(linear, bytes, write: true) }
        let first = 4096 - Int(truncatingIfNeeded: linear & 0xFFF)
        if bytes <= first { return storePlace(value, try place(linear, write: true, mode: mode), bytes) }
        let behind = advance(linear, first)
        try checkCanonical(behind, segment: segment)
        let low = try place(linear, write: true, mode: mode)
        let high = try place(behind, write: true, mode: mode)
        storePlace(value, low, first)
        storePlace(value &>> UInt64(first * 8), high, bytes - first)
    }

    /// Loads up to 8 bytes within a page.
    func loadPlace(_ place: Place, _ bytes: Int) -> UInt64 {
        if let host = place.host {
            switch bytes {
            case 1: return UInt64(host.load(as: UInt8.self))
            case 2: return UInt64(host.loadUnaligned(as: UInt16.self))
            case 4: return UInt64(host.loadUnaligned(as: UInt32.self))
            case 8: return host.loadUnaligned(as: UInt64.self)
            default:
                var value: UInt64 = 0
                withUnsafeMutableBytes(of: &value) { $0.baseAddress?.copyMemory(from: host, byteCount: bytes) }
                return value
            }
        }
        let bus = engine.pointee.bus
        if bytes & (bytes - 1) == 0 { return bus.readMemory(place.physical, size: bytes) & ones(bytes) }
        var value: UInt64 = 0
        for index in 0..<bytes {
            let byte = bus.readMemory(place.physical &+ UInt64(index), size: 1) & 0xFF
            value |= byte &<< UInt64(index * 8)
        }
        return value
    }

    /// Stores up to 8 bytes within a page.
    func storePlace(_ value: UInt64, _ place: Place, _ bytes: Int) {
        if place.isWritable, let host = place.host {
            switch bytes {
            case 1: host.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
            case 2: host.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
            case 4: host.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
            case 8: host.storeBytes(of: value, as: UInt64.self)
            default:
                withUnsafeBytes(of: value) {
                    host.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(host), byteCount: bytes)
                }
            }
            if let code = place.code, code.pointee != 0 { codeWritten(place.physical, UInt64(bytes)) }
            return
        }
        let bus = engine.pointee.bus
        if bytes & (bytes - 1) == 0 {
            bus.writeMemory(place.physical, size: bytes, value: value & ones(bytes))
            return
        }
        for index in 0..<bytes {
            bus.writeMemory(place.physical &+ UInt64(index), size: 1, value: value &>> UInt64(index * 8) & 0xFF)
        }
    }

    @inline(__always) private func ones(_ bytes: Int) -> UInt64 {
        bytes >= 8 ? .max : (1 &<< UInt64(bytes * 8)) &- 1
    }

    /// Throws what a store of `bytes` (at most a page) would, and stores nothing.
    func probeWrite(_ segment: Int, _ offset: UInt64, _ bytes: Int) throws(Fault) {
        let linear = try linearAddress(segment, offset, bytes, write: true)
        _ = try writePlaces(linear, bytes, segment: segment)
    }

    func writePlaces(_ linear: UInt64, _ bytes: Int, segment: Int) throws(Fault) -> (Place, Place?) {
        try checkCanonical(linear, segment: segment)
        if isWatched { try watch(linear, bytes, write: true) }
        let first = 4096 - Int(truncatingIfNeeded: linear & 0xFFF)
        let low = try place(linear, write: true, mode: self.pointee.tlb_mode)
        guard bytes > first else { return (low, nil) }
        let behind = advance(linear, first)
        try checkCanonical(behind, segment: segment)
        return (low, try place(behind, write: true, mode: self.pointee.tlb_mode))
    }

    /// Loads `bytes` (at most a page) from `segment`:`offset`, all or nothing.
    func copyIn(
        _ segment: Int, _ offset: UInt64, into target: UnsafeMutableRawPointer, bytes: Int
    ) throws(Fault) {
        let linear = try linearAddress(segment, offset, bytes, write: false)
        if bytes == 16, let host = lookUpBytes(self.pointee.tlb_read, linear, 16) {
            target.copyMemory(from: host, byteCount: 16)
            return
        }
        if let host = lookUpBytes(self.pointee.tlb_read, linear, bytes) {
            target.copyMemory(from: host, byteCount: bytes)
            return
        }
        try checkCanonical(linear, segment: segment)
        if isWatched { try watch(linear, bytes, write: false) }
        let first = min(bytes, 4096 - Int(truncatingIfNeeded: linear & 0xFFF))
        let low = try place(linear, write: false, mode: self.pointee.tlb_mode)
        var high: Place?
        if bytes > first {
            let behind = advance(linear, first)
            try checkCanonical(behind, segment: segment)
            high = try place(behind, write: false, mode: self.pointee.tlb_mode)
        }
        copyOutOf(low, to: target, bytes: first)
        if let high { copyOutOf(high, to: target + first, bytes: bytes - first) }
    }

    /// Stores `bytes` (at most a page) to `segment`:`offset`, all or nothing.
    func copyOut(_ segment: Int, _ offset: UInt64, from source: UnsafeRawPointer, bytes: Int) throws(Fault) {
        let linear = try linearAddress(segment, offset, bytes, write: true)
        if let host = lookUpBytes(self.pointee.tlb_write, linear, bytes) {
            host.copyMemory(from: source, byteCount: bytes)
            return
        }
        let first = min(bytes, 4096 - Int(truncatingIfNeeded: linear & 0xFFF))
        let (low, high) = try writePlaces(linear, bytes, segment: segment)
        copyInto(low, from: source, bytes: first)
        if let high { copyInto(high, from: source + first, bytes: bytes - first) }
    }

    @inline(__always) func lookUpBytes(
        _ entries: UnsafeMutablePointer<apus_tlb_entry>, _ linear: UInt64, _ bytes: Int
    ) -> UnsafeMutableRawPointer? {
        let entry = entries + Int(truncatingIfNeeded: linear &>> 12 & UInt64(APUS_TLB_ENTRIES - 1))
        let distance = linear ^ entry.pointee.tag
        guard bytes <= 4096, distance <= UInt64(truncatingIfNeeded: 4096 &- bytes) else { return nil }
        return UnsafeMutableRawPointer(bitPattern: UInt(truncatingIfNeeded: distance &+ entry.pointee.host))
    }

    private func copyOutOf(_ place: Place, to target: UnsafeMutableRawPointer, bytes: Int) {
        if let host = place.host { return target.copyMemory(from: host, byteCount: bytes) }
        forEachPart(place.physical, bytes) { physical, at, size in
            var value = engine.pointee.bus.readMemory(physical, size: size)
            withUnsafeBytes(of: &value) {
                target.advanced(by: at).copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(target), byteCount: size)
            }
        }
    }

    private func copyInto(_ place: Place, from source: UnsafeRawPointer, bytes: Int) {
        if place.isWritable, let host = place.host {
            host.copyMemory(from: source, byteCount: bytes)
            if let code = place.code, code.pointee != 0 { codeWritten(place.physical, UInt64(bytes)) }
            return
        }
        forEachPart(place.physical, bytes) { physical, at, size in
            var value: UInt64 = 0
            withUnsafeMutableBytes(of: &value) {
                $0.copyMemory(from: UnsafeRawBufferPointer(start: source + at, count: size))
            }
            engine.pointee.bus.writeMemory(physical, size: size, value: value)
        }
    }

    /// Cuts a range into naturally aligned accesses of at most 8 bytes.
    private func forEachPart(_ physical: UInt64, _ bytes: Int, _ body: (UInt64, Int, Int) -> Void) {
        var at = 0
        while at < bytes {
            var size = 8
            while size > bytes - at || (physical &+ UInt64(at)) & UInt64(size - 1) != 0 { size /= 2 }
            body(physical &+ UInt64(at), at, size)
            at += size
        }
    }
}
