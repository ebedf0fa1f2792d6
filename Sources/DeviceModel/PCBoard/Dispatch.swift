// What an ioreq does: finds the chip on the buses, and moves strings in one step where the chip can.
// Source: Xen's public/hvm/ioreq.h for the fields.
// Modelled: ports, memory, configuration space, repeated accesses with a memory operand.
// Quirks: elements whose RAM operand is not RAM read as ones and are lost when written.

internal import Ioreq
internal import Machine
internal import PCI

/// Carries requests out on a board.
final class Dispatch {
    private let board: Board
    private let pci: PCIBus
    private let memory: GuestMemory

    init(_ board: Board, _ pci: PCIBus, _ memory: GuestMemory) {
        (self.board, self.pci, self.memory) = (board, pci, memory)
    }

    /// A read's value; a write's is meaningless.
    func handle(_ request: Request, at now: Instant) -> UInt64 {
        guard let width = Width(rawValue: request.size) else { return .max }
        defer { memory.flush() }
        switch request.kind {
        case .port where request.memoryOperand, .memory where request.memoryOperand:
            string(request, width, at: now)
            return 0
        case .port: return single(board.ports, request.address & 0xFFFF, request, width, at: now)
        case .memory: return single(board.memory, request.address, request, width, at: now)
        case .pciConfig: return config(request, width, at: now)
        }
    }

    private func single(_ bus: Bus, _ address: UInt64, _ request: Request, _ width: Width, at now: Instant) -> UInt64 {
        if request.isRead { return bus.read(address, width, at: now) }
        bus.write(request.data, address, width, at: now)
        return 0
    }

    /// The address carries bus, device and function above bit 32.
    private func config(_ request: Request, _ width: Width, at now: Instant) -> UInt64 {
        let bus = UInt8(truncatingIfNeeded: request.address >> 40)
        let devfn = UInt8(truncatingIfNeeded: request.address >> 32)
        let register = request.address & 0xFFFF
        if request.isRead { return pci.read(bus: bus, devfn: devfn, register: register, width, at: now) }
        pci.write(request.data, bus: bus, devfn: devfn, register: register, width, at: now)
        return 0
    }

    private func string(_ request: Request, _ width: Width, at now: Instant) {
        if request.kind == .port, !request.descending, atOnce(request, width, at: now) { return }
        let step = UInt64(width.rawValue)
        var place = request.data
        var target = request.address
        for _ in 0..<request.count {
            let bus = request.kind == .port ? board.ports : board.memory
            if request.isRead {
                store(bus.read(target, width, at: now), width, at: GuestAddress(place))
            } else {
                bus.write(load(width, at: GuestAddress(place)), target, width, at: now)
            }
            place = request.descending ? place &- step : place &+ step
            if request.kind == .memory { target = request.descending ? target &- step : target &+ step }
        }
    }

    /// One call to a chip that takes strings, straight from or to guest RAM; false if that cannot be done.
    private func atOnce(_ request: Request, _ width: Width, at now: Instant) -> Bool {
        guard let (mapping, offset) = board.ports.find(request.address & 0xFFFF),
            let device = mapping.slot.device as? any StringDevice,
            device.regions[mapping.region].widths.contains(width)
        else { return false }
        let bytes = request.count * width.rawValue
        guard let window = unsafe try? memory.window(at: GuestAddress(request.data), bytes: bytes) else { return false }
        let access = Access(region: mapping.region, offset: offset, width: width)
        device.advance(to: now)
        if request.isRead {
            unsafe device.read(access, into: window)
            memory.wrote(at: GuestAddress(request.data), bytes: bytes)
        } else {
            unsafe device.write(UnsafeRawBufferPointer(window), access)
        }
        device.settle()
        return true
    }

    private func load(_ width: Width, at place: GuestAddress) -> UInt64 {
        var value: UInt64 = 0
        let read = unsafe withUnsafeMutableBytes(of: &value) { bytes in
            let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[0..<width.rawValue])
            return (try? unsafe memory.read(at: place, into: part)) != nil
        }
        return read ? value : width.ones
    }

    private func store(_ value: UInt64, _ width: Width, at place: GuestAddress) {
        unsafe withUnsafeBytes(of: value) { bytes in
            let part = unsafe UnsafeRawBufferPointer(rebasing: bytes[0..<width.rawValue])
            try? unsafe memory.write(part, at: place)
        }
    }
}
