// memory_op, exchange: a PV guest gives frames away and gets as many others, which lie side by side or below a limit.
// Source: Xen public/memory.h (struct xen_memory_exchange); xen/common/memory.c (memory_exchange: checks, errors, chunks).
// Modelled: any two orders, the limit of address bits, how far it came. Not modelled: NUMA nodes.
// Quirks: new frames come from those that the domain does not have, the ones just given among them; a domain without others
// gets neighbours only for neighbours.

internal import CXen
internal import Processor

extension Hypercall {
    /// struct xen_memory_reservation within a call of 72 bytes.
    private struct Extents {
        let list: UInt64
        let count: UInt64
        let order: Int
        /// One past the highest frame.
        let limit: UInt64
        let domid: UInt16
        var size: UInt64 { 1 << UInt64(order) }

        init(_ call: Record, at offset: Int) throws(XenError) {
            let order = call.u32(offset + 16)
            // MAX_ORDER of guests without hardware.
            guard order <= 9 else { throw .notPermitted }
            (list, count, self.order) = (call.u64(offset), call.u64(offset + 8), Int(order))
            let bits = UInt64(call.u32(offset + 20) & 0xFF)
            limit = bits == 0 || bits >= 64 ? .max : bits <= 12 ? 0 : 1 << (bits - 12)
            domid = call.u16(offset + 24)
        }
    }

    /// Does as many chunks as it can: each as large as the larger of the two orders.
    func exchange(_ address: UInt64) throws(XenError) -> Int64 {
        var call = try read(address, 72)
        let (given, wanted) = (try Extents(call, at: 0), try Extents(call, at: 32))
        let done = call.u64(64)
        try requireSelf(given.domid)
        guard isSelf(wanted.domid), given.count <= 1 << 24, wanted.count <= 1 << 24, done <= given.count,
            given.count * given.size == wanted.count * wanted.size
        else { throw .invalid }
        let (inputs, outputs) = (max(1, wanted.size / given.size), max(1, given.size / wanted.size))
        guard given.count % inputs == 0, done % inputs == 0 else { throw .invalid }
        var failure: XenError?
        var finished = done
        while finished < given.count, failure == nil {
            do throws(XenError) {
                try exchange(given, finished..<finished + inputs, for: wanted, finished / inputs * outputs, outputs)
                finished += inputs
            } catch { failure = error }
        }
        call.set(finished, at: 64)
        try write(call.bytes, address)
        if let failure { throw failure }
        return 0
    }

    /// All of one chunk, or nothing.
    private func exchange(
        _ given: Extents, _ inputs: Range<UInt64>, for wanted: Extents, _ first: UInt64, _ outputs: UInt64
    ) throws(XenError) {
        let known = try known()
        let old = try frames(given, inputs.lowerBound, inputs.upperBound - inputs.lowerBound)
        let numbers = try frames(wanted, first, outputs)
        var removed: [UInt64] = []
        var taken: [UInt64] = []
        func undo() {
            for start in taken { for frame in start..<start + wanted.size { _ = xen.reservation.remove(frame) } }
            for frame in removed { _ = xen.reservation.add(frame) }
        }
        for start in old {
            for frame in start..<start &+ given.size {
                guard machine.page(frame) != nil, known[frame] == 0, xen.reservation.remove(frame) else {
                    undo()
                    throw .invalid
                }
                removed.append(frame)
            }
        }
        for _ in 0..<outputs {
            guard let start = xen.reservation.takeRun(order: wanted.order, below: wanted.limit) else {
                undo()
                throw .noMemory
            }
            taken.append(start)
        }
        for frame in removed {
            machine.discard(frame)
            machine.setFrame(frame, to: .max)
        }
        for (index, start) in taken.enumerated() {
            for page in 0..<wanted.size { machine.setFrame(start + page, to: numbers[index] &+ page) }
            var answer = Record(count: 8, isLong: true)
            answer.set(start, at: 0)
            try write(answer.bytes, wanted.list &+ (first + UInt64(index)) * 8)
        }
    }

    private func frames(_ extents: Extents, _ first: UInt64, _ count: UInt64) throws(XenError) -> [UInt64] {
        let list = try read(extents.list &+ first &* 8, Int(count) * 8)
        let frames = (0..<Int(count)).map { list.u64($0 * 8) }
        guard frames.allSatisfy({ $0 < 1 << 52 }) else { throw .invalid }
        return frames
    }
}
