// Descriptors, and loading segment registers with them in every mode.
// Source: Intel SDM vol. 3 §3.4 (segments), §5.5-5.8 (privilege), §20.1 (real mode), §21.2 (virtual-8086).
// Modelled: all checks, the accessed bit, limits that survive in real mode; not modelled: VME.
// A null selector clears the hidden part, as Intel's processors do.

internal import CProcessor

/// A segment, system or gate descriptor as it lies in a table.
struct Descriptor {
    /// The first eight bytes.
    var raw: UInt64
    /// Bytes 8-15 of a 16-byte descriptor of long mode, else zero.
    var high: UInt64 = 0

    var type: UInt8 { UInt8((raw >> 40) & 15) }
    var isSystem: Bool { raw & (1 << 44) == 0 }
    var dpl: UInt8 { UInt8((raw >> 45) & 3) }
    var isPresent: Bool { raw & (1 << 47) != 0 }
    var isLong: Bool { raw & (1 << 53) != 0 }
    var isBig: Bool { raw & (1 << 54) != 0 }
    var isCode: Bool { !isSystem && type & 8 != 0 }
    var isConforming: Bool { isCode && type & 4 != 0 }
    var isWritableData: Bool { !isSystem && type & 0xA == 2 }
    var isReadable: Bool { !isSystem && type & 0xA != 8 }

    var base: UInt64 {
        (raw >> 16) & 0xFF_FFFF | ((raw >> 56) & 0xFF) << 24 | (high & 0xFFFF_FFFF) << 32
    }
    /// In bytes.
    var limit: UInt32 {
        let value = UInt32(truncatingIfNeeded: raw & 0xFFFF | ((raw >> 48) & 15) << 16)
        return raw & (1 << 55) != 0 ? value << 12 | 0xFFF : value
    }
    var access: UInt16 { UInt16(truncatingIfNeeded: (raw >> 40) & 0xF0FF) }

    // Gates.
    var gateSelector: UInt16 { UInt16(truncatingIfNeeded: raw >> 16) }
    var gateOffset: UInt64 { raw & 0xFFFF | (raw >> 32) & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32 }
    var parameters: Int { Int((raw >> 32) & 31) }
    var interruptStack: Int { Int((raw >> 32) & 7) }

    func segment(selector: UInt16) -> apus_segment {
        apus_segment(base: base, limit: limit, selector: selector, access: access)
    }
}

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The level that descriptors are compared with: a PV guest's kernel has that of its programs.
    @inline(__always) var privilege: UInt8 { isParavirtual ? 3 : pointee.cpl }

    /// Linear address of a selector's descriptor, or nil when its table does not hold `bytes` bytes of it.
    func descriptorAddress(_ selector: UInt16, bytes: UInt64 = 8) -> UInt64? {
        let offset = UInt64(selector & 0xFFF8)
        let table: (base: UInt64, limit: UInt64)
        if selector & 4 != 0 {
            let ldt = segment(Seg.ldtr).pointee
            guard ldt.access & Access.present != 0 else { return nil }
            table = (ldt.base, UInt64(ldt.limit))
        } else {
            table = (pointee.gdtr.base, UInt64(pointee.gdtr.limit))
        }
        guard offset &+ bytes &- 1 <= table.limit else { return nil }
        return linear(table.base &+ offset)
    }

    /// Wraps a linear address at 4 GiB outside long mode.
    @inline(__always) func linear(_ address: UInt64) -> UInt64 {
        pointee.long_mode ? address : address & 0xFFFF_FFFF
    }

    /// Reads the descriptor of `selector`; `vector` is raised when there is none.
    func readDescriptor(
        _ selector: UInt16, fault vector: UInt8 = Vector.generalProtection, external: UInt32 = 0
    ) throws(Fault) -> Descriptor {
        if isParavirtual {
            if let descriptor = paravirtualDescriptor(selector) { return descriptor }
            throw raise(vector, error: UInt32(selector & 0xFFFC) | external)
        }
        guard let address = descriptorAddress(selector) else {
            throw raise(vector, error: UInt32(selector & 0xFFFC) | external)
        }
        return Descriptor(raw: try loadSystem(address, as: UInt64.self))
    }

    /// Reads the second half of a 16-byte system descriptor of long mode.
    func readHigh(
        _ selector: UInt16, _ descriptor: inout Descriptor, fault vector: UInt8 = Vector.generalProtection
    ) throws(Fault) {
        guard let address = descriptorAddress(selector, bytes: 16) else {
            throw raise(vector, error: UInt32(selector & 0xFFFC))
        }
        descriptor.high = try loadSystem(address &+ 8, as: UInt64.self)
        guard (descriptor.high >> 40) & 0x1F == 0 else { throw raise(vector, error: UInt32(selector & 0xFFFC)) }
    }

    /// Sets a descriptor's accessed bit in memory and in `descriptor`.
    func markAccessed(_ selector: UInt16, _ descriptor: inout Descriptor) throws(Fault) {
        // A PV guest's tables are not its to write, and its hypervisor does not bother.
        guard descriptor.raw & (1 << 40) == 0, !isParavirtual, let address = descriptorAddress(selector) else { return }
        descriptor.raw |= 1 << 40
        try storeSystem(UInt8(truncatingIfNeeded: descriptor.raw >> 40), address &+ 5)
    }

    /// Loads ES, SS, DS, FS or GS as MOV and POP do, with every check of the current mode.
    func loadSegment(_ index: Int, selector: UInt16) throws(Fault) {
        guard pointee.protected_mode else {
            loadRealSegment(index, selector: selector)
            updateMode()
            return
        }
        let loaded =
            index == Seg.ss
            ? try stackSegment(selector, cpl: privilege, fault: Vector.generalProtection)
            : try dataSegment(selector)
        segment(index).pointee = loaded
        if index < Seg.fs, pointee.code_size != 8 { updateMode() }
    }

    /// Loads a segment register in real or virtual-8086 mode; `updateMode` is left to the caller.
    func loadRealSegment(_ index: Int, selector: UInt16) {
        let register = segment(index)
        register.pointee.selector = selector
        register.pointee.base = UInt64(selector) << 4
        if isVirtual8086 {
            register.pointee.limit = 0xFFFF
            register.pointee.access = 0xF3
        } else {
            // Limit, D and G stay as they were: "big real mode".
            if register.pointee.access & Access.present == 0 {
                register.pointee.limit = 0xFFFF
                register.pointee.access = 0
            }
            register.pointee.access = register.pointee.access & 0xF000 & ~Access.long | 0x93
        }
    }

    /// Checks a selector for ES, DS, FS or GS.
    func dataSegment(_ selector: UInt16, fault vector: UInt8 = Vector.generalProtection) throws(Fault) -> apus_segment {
        if selector & 0xFFFC == 0 { return apus_segment(base: 0, limit: 0, selector: selector, access: 0) }
        var descriptor = try readDescriptor(selector, fault: vector)
        let privilege = max(UInt8(selector & 3), pointee.cpl)
        guard descriptor.isReadable, descriptor.isConforming || privilege <= descriptor.dpl else {
            throw raise(vector, error: UInt32(selector & 0xFFFC))
        }
        guard descriptor.isPresent else { throw raise(Vector.notPresent, error: UInt32(selector & 0xFFFC)) }
        try markAccessed(selector, &descriptor)
        return descriptor.segment(selector: selector)
    }

    /// Checks a selector for SS at privilege level `cpl`; `vector` is #GP for moves and returns, #TS for
    /// stacks out of a TSS.
    func stackSegment(
        _ selector: UInt16, cpl: UInt8, fault vector: UInt8, external: UInt32 = 0, to64Bit: Bool? = nil
    ) throws(Fault) -> apus_segment {
        if selector & 0xFFFC == 0 {
            guard to64Bit ?? is64Bit, cpl != 3, UInt8(selector & 3) == cpl else { throw raise(vector, error: external) }
            return apus_segment(base: 0, limit: 0, selector: selector, access: 0)
        }
        let error = UInt32(selector & 0xFFFC) | external
        var descriptor = try readDescriptor(selector, fault: vector, external: external)
        guard UInt8(selector & 3) == cpl, descriptor.isWritableData, descriptor.dpl == cpl else {
            throw raise(vector, error: error)
        }
        guard descriptor.isPresent else { throw raise(Vector.stack, error: error) }
        try markAccessed(selector, &descriptor)
        return descriptor.segment(selector: selector)
    }

    /// Loads CS from a checked descriptor and sets the privilege level; `updateMode` is left to the caller.
    func setCode(_ selector: UInt16, _ descriptor: Descriptor, cpl: UInt8) {
        pointee.cpl = cpl
        segment(Seg.cs).pointee = descriptor.segment(selector: selector & 0xFFFC | UInt16(isParavirtual ? 3 : cpl))
    }

    /// Clears data segments that the new, lower privilege level may not keep (SDM vol. 2, RET).
    func dropPrivilegedSegments() {
        for index in [Seg.es, Seg.ds, Seg.fs, Seg.gs] {
            let access = segment(index).pointee.access
            // A null segment stays: in long mode FS and GS keep the base that an MSR gave them.
            guard access & Access.present != 0 else { continue }
            let conforming = access & (Access.code | Access.conforming) == Access.code | Access.conforming
            if !conforming, UInt8((access >> 5) & 3) < pointee.cpl { segment(index).pointee = apus_segment() }
        }
    }

    /// Raises #GP(0) unless code at `offset` in `descriptor`'s segment can be fetched.
    func checkTarget(_ offset: UInt64, _ descriptor: Descriptor, external: UInt32 = 0) throws(Fault) {
        if pointee.long_mode, descriptor.isLong {
            guard isCanonical(offset) else { throw raise(Vector.generalProtection, error: external) }
        } else if offset > UInt64(descriptor.limit) {
            throw raise(Vector.generalProtection, error: external)
        }
    }

    /// Whether bits 63:47 of an address are equal (48-bit linear addresses).
    @inline(__always) func isCanonical(_ address: UInt64) -> Bool {
        UInt64(bitPattern: Int64(bitPattern: address << 16) >> 16) == address
    }

    /// Raises #GP unless `descriptor` can be executed in the current mode: in long mode, L and D exclude each other.
    func checkCodeType(_ descriptor: Descriptor, _ selector: UInt16, external: UInt32 = 0) throws(Fault) {
        guard descriptor.isCode, !(pointee.long_mode && descriptor.isLong && descriptor.isBig) else {
            throw raise(Vector.generalProtection, error: UInt32(selector & 0xFFFC) | external)
        }
    }
}

/// A stack that values are pushed to or popped from before anything is committed.
struct Stack {
    let cpu: CPU
    let segment: apus_segment
    /// Privilege with which it is reached.
    let cpl: UInt8
    /// 2, 4 or 8 bytes of the pointer count.
    let width: UInt8
    /// Error code of #SS when the segment is left.
    let error: UInt32
    var pointer: UInt64

    /// The stack in use.
    init(current cpu: CPU, external: UInt32 = 0) {
        self.init(
            cpu, cpu.segment(Seg.ss).pointee, cpl: cpu.pointee.cpl, pointer: cpu.pointee.gpr.4,
            width: cpu.pointee.stack_size, error: external)
    }

    init(_ cpu: CPU, _ segment: apus_segment, cpl: UInt8, pointer: UInt64, width: UInt8, error: UInt32) {
        (self.cpu, self.segment, self.cpl, self.width) = (cpu, segment, cpl, width)
        (self.pointer, self.error) = (pointer, error)
    }

    /// A new stack from a TSS.
    init(new cpu: CPU, _ segment: apus_segment, cpl: UInt8, pointer: UInt64, error: UInt32) {
        let big = segment.access & Access.big != 0
        self.init(cpu, segment, cpl: cpl, pointer: pointer, width: big ? 4 : 2, error: error)
    }

    private var mask: UInt64 { width == 8 ? .max : width == 4 ? 0xFFFF_FFFF : 0xFFFF }

    /// `pointer` moved by `bytes`; bits above the stack's width stay.
    private func moved(_ bytes: UInt64) -> UInt64 { pointer & ~mask | (pointer &+ bytes) & mask }

    /// Linear address of `bytes` bytes at `offset`.
    private func linear(_ offset: UInt64, _ bytes: UInt64) throws(Fault) -> UInt64 {
        let offset = offset & mask
        if width == 8 { return offset }
        let last = offset &+ bytes &- 1
        let top: UInt64 = segment.access & Access.big != 0 ? 0xFFFF_FFFF : 0xFFFF
        let inside =
            segment.access & (Access.code | Access.conforming) == Access.conforming
            ? offset > UInt64(segment.limit) && last <= top : last <= UInt64(segment.limit)
        guard inside else { throw cpu.raise(Vector.stack, error: error) }
        return (segment.base &+ offset) & 0xFFFF_FFFF
    }

    mutating func push(_ value: UInt64, size: UInt8) throws(Fault) {
        let target = moved(0 &- UInt64(size))
        let address = try linear(target, UInt64(size))
        switch size {
        case 2: try cpu.storeLinear(UInt16(truncatingIfNeeded: value), address, cpl: cpl)
        case 4: try cpu.storeLinear(UInt32(truncatingIfNeeded: value), address, cpl: cpl)
        default: try cpu.storeLinear(value, address, cpl: cpl)
        }
        pointer = target
    }

    mutating func pop(size: UInt8) throws(Fault) -> UInt64 {
        let address = try linear(pointer, UInt64(size))
        let value: UInt64
        switch size {
        case 2: value = UInt64(try cpu.loadLinear(address, as: UInt16.self, cpl: cpl))
        case 4: value = UInt64(try cpu.loadLinear(address, as: UInt32.self, cpl: cpl))
        default: value = try cpu.loadLinear(address, as: UInt64.self, cpl: cpl)
        }
        pointer = moved(UInt64(size))
        return value
    }

    mutating func skip(_ bytes: UInt64) { pointer = moved(bytes) }

    /// Makes this the stack in use.
    func commit() {
        cpu.segment(Seg.ss).pointee = segment
        cpu.pointee.gpr.4 = width == 8 ? pointer : pointer & 0xFFFF_FFFF
    }

    /// Moves the stack pointer of the stack in use.
    func commitPointer() {
        cpu.pointee.gpr.4 = pointer
    }
}
