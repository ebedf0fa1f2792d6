// Local APIC of one processor, xAPIC and x2APIC mode.
// Source: Intel SDM volume 3, chapter 11 (Advanced Programmable Interrupt Controller).
// Modelled: priorities, IPIs, LVT, timer (one-shot, periodic, TSC deadline), MSRs. Not modelled: CMCI, directed EOI,
// arbitration, focus; no message ever waits, so "delivery status" reads idle.
// Quirks: the timer counts 100 MHz as on Xen; periods below 20 microseconds are stretched so that a guest cannot flood itself.

public import Machine

public final class LocalAPIC: Device {
    /// The window; where it lies is up to the APIC base MSR, which the processor's bus follows.
    public let regions = [Region("lapic", .memory, 0xFEE0_0000...0xFEE0_0FFF, widths: [.long])]
    /// Which processor of the machine, counted from 0; also the power-on APIC id's source.
    public let index: Int
    private let isBootProcessor: Bool
    private let bus: any InterruptBus
    private let changed: () -> Void
    public var state: State

    /// `tsc`: ticks a second of the time stamp counter, which starts with guest time.
    /// `changed`: what `pending` says may have changed.
    public init(
        index: Int, id: UInt32, isBootProcessor: Bool, tsc: TickRate, bus: any InterruptBus,
        changed: @escaping () -> Void
    ) {
        (self.index, self.isBootProcessor, self.bus, self.changed) = (index, isBootProcessor, bus, changed)
        state = State(id: id, isBootProcessor: isBootProcessor, tsc: tsc.hertz)
    }

    /// The vector that the processor would be given now.
    public var pending: UInt8? { state.pending }
    /// Takes the pending vector: it is in service.
    public func acknowledge() -> UInt8? { state.acknowledge() }

    /// A fixed or lowest-priority interrupt arrives.
    public func accept(vector: UInt8, isLevel: Bool) {
        state.accept(vector: vector, isLevel: isLevel)
        settle()
    }

    /// An edge-triggered interrupt of the hypervisor's: it waits even while the APIC is disabled by software, as on Xen.
    public func post(vector: UInt8) {
        guard vector >= 16 else { return }
        state.requested[vector] = true
        state.triggerMode[vector] = false
        settle()
    }

    /// Whether a vector waits or is in service.
    public func holds(vector: UInt8) -> Bool { state.requested[vector] || state.inService[vector] }

    public var deadline: Instant? { state.nextExpiry }
    public func advance(to now: Instant) {
        if state.advance(to: now) { settle() }
    }
    public func settle() { changed() }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        guard access.offset & 0xF == 0 else { throw .misaligned }
        return UInt64(state.read(UInt8(truncatingIfNeeded: access.offset >> 4)))
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        guard access.offset & 0xF == 0 else { throw .misaligned }
        perform(state.write(UInt8(truncatingIfNeeded: access.offset >> 4), UInt32(truncatingIfNeeded: value)))
    }

    /// RDMSR of IA32_APIC_BASE (0x1B), IA32_TSC_DEADLINE (0x6E0) and 0x800-0x8FF; nil is #GP.
    public func readMSR(_ number: UInt32) -> UInt64? { state.readMSR(number) }

    /// WRMSR of the same; false is #GP.
    public func writeMSR(_ number: UInt32, _ value: UInt64) -> Bool {
        guard let action = state.writeMSR(number, value) else { return false }
        perform(action)
        settle()
        return true
    }

    /// What has to happen outside after a register was written.
    public enum Action: Equatable, Sendable {
        case none
        case send(InterruptMessage)
        case ended(UInt8)
    }

    private func perform(_ action: Action) {
        switch action {
        case .none: return
        case .send(let message): bus.deliver(message, from: index)
        case .ended(let vector): bus.endOfInterrupt(vector: vector)
        }
    }
}
