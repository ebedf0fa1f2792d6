public import Host

/// A domain's RAM: one memory file, the part below the PCI hole at address 0, the rest from 4 GiB.
public struct GuestRAM: @unchecked Sendable {
    // Invariant: the bytes are the guest's; whoever reads them takes a private copy first.
    /// Where RAM ends and the PCI hole begins at the latest (as QEMU's i440FX board has it).
    public static let holeStart: UInt64 = 0xE000_0000
    public static let highStart: UInt64 = 0x1_0000_0000

    public let memory: SharedMemory
    /// One byte per page of RAM in file order: non-zero where the engine has decoded code.
    public let codeMap: SharedMemory
    public let size: UInt64
    let base: UnsafeMutableRawPointer
    public let lowSize: UInt64

    public var highSize: UInt64 { size - lowSize }

    /// `isFlat`: there is no hole, as in PV domains.
    public init(memory: SharedMemory, codeMap: SharedMemory, isFlat: Bool = false) {
        (self.memory, self.codeMap) = (memory, codeMap)
        size = UInt64(memory.bytes.count)
        lowSize = isFlat ? size : min(size, Self.holeStart)
        precondition(codeMap.bytes.count >= Int(size >> 12), "the code map is too small")
        guard let base = memory.bytes.baseAddress else { preconditionFailure("guest RAM is not mapped") }
        self.base = base
    }

    /// `size` bytes, a multiple of 4096.
    public static func make(size: UInt64, isFlat: Bool = false) throws(HostFailure) -> GuestRAM {
        GuestRAM(
            memory: try SharedMemory(named: "apus-ram", size: Int(size)),
            codeMap: try SharedMemory(named: "apus-code-map", size: Int(size >> 12)), isFlat: isFlat)
    }

    /// Offset in the memory file of a guest-physical range that lies wholly in RAM.
    @inline(__always) public func offset(of address: UInt64, bytes: UInt64) -> UInt64? {
        if address < lowSize { return bytes <= lowSize - address ? address : nil }
        guard address >= Self.highStart else { return nil }
        let above = address - Self.highStart
        guard above < highSize, bytes <= highSize - above else { return nil }
        return lowSize + above
    }

    /// The host's view of a guest-physical range, nil if any of it is not RAM.
    @inline(__always) public func pointer(to address: UInt64, bytes: Int) -> UnsafeMutableRawPointer? {
        guard bytes >= 0, let offset = offset(of: address, bytes: UInt64(bytes)) else { return nil }
        return base + Int(offset)
    }

    /// Whether code was decoded from a page of this range of the memory file.
    public func holdsCode(offset: UInt64, bytes: UInt64) -> Bool {
        guard bytes > 0 else { return false }
        let first = Int(offset >> 12)
        let last = Int((offset + bytes - 1) >> 12)
        return (first...last).contains { codeMap.bytes[$0] != 0 }
    }
}
