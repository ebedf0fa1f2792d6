// Guest RAM as devices reach it.
// Source: Sources/Hypervisor/Ioreq/GuestRAM.swift (layout), Command.modified (what the CPU must be told).
// Modelled: RAM below and above the PCI hole. Not modelled: device-to-device transfers (a fault).
// Quirks: written code is reported before an interrupt line changes and before an access is answered, so no CPU
// can act on data whose stale translation it still holds; many small ranges are reported as one that covers them.

public import Ioreq
public import Machine
internal import PCI

/// DMA over the domain's RAM.
public final class GuestMemory: DMA {
    private let ram: GuestRAM
    private let pages: IoreqPages
    private var modified: [(start: UInt64, end: UInt64)] = []
    private static let separateRanges = 16

    public init(_ ram: GuestRAM, _ pages: IoreqPages) { (self.ram, self.pages) = (ram, pages) }

    public func read(at address: GuestAddress, into bytes: UnsafeMutableRawBufferPointer) throws(DMAFault) {
        guard let source = unsafe ram.pointer(to: address.raw, bytes: bytes.count) else { throw DMAFault(address) }
        unsafe bytes.copyMemory(from: UnsafeRawBufferPointer(start: source, count: bytes.count))
    }

    public func write(_ bytes: UnsafeRawBufferPointer, at address: GuestAddress) throws(DMAFault) {
        guard let target = unsafe ram.pointer(to: address.raw, bytes: bytes.count) else { throw DMAFault(address) }
        guard let source = bytes.baseAddress else { return }
        unsafe target.copyMemory(from: source, byteCount: bytes.count)
        wrote(at: address, bytes: bytes.count)
    }

    public func window(at address: GuestAddress, bytes: Int) throws(DMAFault) -> UnsafeMutableRawBufferPointer {
        guard let start = unsafe ram.pointer(to: address.raw, bytes: bytes) else { throw DMAFault(address) }
        return unsafe UnsafeMutableRawBufferPointer(start: start, count: bytes)
    }

    public func wrote(at address: GuestAddress, bytes: Int) {
        guard bytes > 0, let offset = ram.offset(of: address.raw, bytes: UInt64(bytes)) else { return }
        guard ram.holdsCode(offset: offset, bytes: UInt64(bytes)) else { return }
        let end = address.raw + UInt64(bytes)
        if let last = modified.last, last.end == address.raw {
            modified[modified.count - 1].end = end
        } else {
            modified.append((address.raw, end))
        }
    }

    /// Tells the hypervisor of code that was written since the last call.
    public func flush() {
        guard !modified.isEmpty else { return }
        if modified.count > Self.separateRanges {
            let start = modified.map(\.start).min() ?? 0
            modified = [(start, modified.map(\.end).max() ?? start)]
        }
        for range in modified { pages.send(.modified(at: range.start, bytes: range.end - range.start)) }
        modified.removeAll(keepingCapacity: true)
    }
}

/// The interrupt inputs of the hypervisor's chips.
final class InterruptLines {
    private let pages: IoreqPages
    private let memory: GuestMemory
    /// Line n by number, each shared by whoever asks for an input of it.
    private var shared: [SharedLine] = []
    private var pins: [[any Line]] = []

    init(_ pages: IoreqPages, _ memory: GuestMemory) {
        (self.pages, self.memory) = (pages, memory)
        self.shared = (0..<IoreqPages.lineCount).map { line in
            SharedLine(
                Wire { high in
                    memory.flush()
                    if pages.driveLine(line, high) { pages.kick(0) }
                })
        }
        pins = (0..<32).map { device in (0..<4).map { input(16 + ((device * 4 + $0) & 31)) } }
    }

    func input(_ line: Int) -> any Line { shared[line].input() }

    /// An input for each of the 16 ISA interrupts.
    var isa: [any Line] { (0..<16).map(input) }

    /// The input that pin `pin` of PCI device `device` has for itself: 16 + (4 device + pin) mod 32, as on Xen.
    func pci(device: Int, pin: Int) -> any Line { pins[device & 31][pin & 3] }
}
