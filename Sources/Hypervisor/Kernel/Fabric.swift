// The interrupt fabric: every chip that lives beside the processors, and the wires between them.
// Source: Intel MultiProcessor Specification 1.4 §3.6 (PIC, virtual wire and symmetric I/O modes); IA-PC HPET §2.3.5.
// Modelled: PIC to LINT0 of the boot processor, ISA IRQ n = I/O APIC input n (IRQ 0 = input 2), PCI inputs 16-47,
// HPET in place of 8254 and RTC. Not modelled: the PIC on an I/O APIC input, NMI buttons, SMI.
// Quirks: with its local APIC disabled, the boot processor takes the PIC's interrupts directly.

internal import Chips
internal import Machine

/// Not thread-safe: `Chipset` keeps it behind its lock.
final class Fabric {
    /// Events that go to a processor past its interrupt vectors.
    struct Signals {
        var nonMaskable = false
        var initialise = false
        var startup: UInt8?
        var isEmpty: Bool { !nonMaskable && !initialise && startup == nil }
    }

    private let wiring = Wiring()
    let pic: Slot
    let pit: Slot
    let ioapic: Slot
    let hpet: Slot
    let pmTimer: Slot
    let locals: [Slot]
    private let picPair: PIC8259Pair
    private let timer: PIT8254
    private let inputs: IOAPIC
    private let eventTimer: HPET
    let apics: [LocalAPIC]

    private var signals: [Signals]
    /// vCPUs that know of a deliverable interrupt and have not come for it yet.
    private var announced: UInt32 = 0
    /// vCPUs to call once the lock is free.
    private var calls: UInt32 = 0
    private var isPICHigh = false
    private var isLegacyReplaced = false
    /// Levels as the device model, the 8254 and the HPET drive them, and what the inputs see.
    private var deviceLines: UInt64 = 0
    private var timerLine = false
    private var hpetLines: UInt64 = 0
    private var callbackLines: UInt64 = 0
    private var lines: UInt64 = 0
    /// IRQ 13, which an x87 exception raises and a write to port F0 lowers.
    private var numericLine = false

    init(vcpus: Int, tsc: TickRate) {
        let wiring = wiring
        picPair = PIC8259Pair(intr: Wire { wiring.fabric?.pictureChanged($0) })
        timer = PIT8254(irq: Wire { wiring.fabric?.timerChanged($0) })
        inputs = IOAPIC(bus: wiring)
        eventTimer = HPET(
            drive: { wiring.fabric?.drive($0, $1) }, legacyChanged: { wiring.fabric?.replaceLegacy($0) })
        apics = (0..<vcpus).map { index in
            LocalAPIC(
                index: index, id: Self.apicID(index), isBootProcessor: index == 0, tsc: tsc, bus: wiring,
                changed: { wiring.fabric?.evaluate(index) })
        }
        (pic, pit) = (Slot("pic", picPair), Slot("pit", timer))
        (ioapic, hpet) = (Slot("ioapic", inputs), Slot("hpet", eventTimer))
        pmTimer = Slot("pm-timer", PMTimer())
        locals = apics.map { Slot("lapic", $0) }
        signals = Array(repeating: Signals(), count: vcpus)
        wiring.fabric = self
    }

    /// Xen gives vCPU n the APIC id 2n.
    static func apicID(_ index: Int) -> UInt32 { UInt32(index) * 2 }

    /// Breaks the circle between chips and fabric while both are made.
    private final class Wiring: InterruptBus {
        var fabric: Fabric?
        func deliver(_ message: InterruptMessage, from sender: Int?) { fabric?.deliver(message, from: sender) }
        func endOfInterrupt(vector: UInt8) { fabric?.inputs.endOfInterrupt(vector: vector) }
    }

    // MARK: lines

    private func pictureChanged(_ high: Bool) {
        isPICHigh = high
        evaluate(0)
    }

    private func timerChanged(_ high: Bool) {
        timerLine = high
        updateLines()
    }

    private func replaceLegacy(_ replaced: Bool) {
        guard replaced != isLegacyReplaced else { return }
        isLegacyReplaced = replaced
        updateLines()
    }

    private func drive(_ output: HPET.Output, _ high: Bool) {
        let line: Int
        switch output {
        case .legacy(let irq): line = irq
        case .input(let input): line = input
        }
        // Comparators are wired to IRQ 0, IRQ 8 and inputs 20 to 23 only.
        guard line == 0 || line == 8 || (20...23).contains(line) else { return }
        let bit = UInt64(1) << UInt64(line)
        hpetLines = high ? hpetLines | bit : hpetLines & ~bit
        updateLines()
    }

    /// The device model's lines: present levels, and which of them rose since the last call.
    func drive(levels: UInt64, rises: UInt64) {
        // A line that is as it was but rose in between: show the other level first.
        let pulsed = rises & ~(levels ^ deviceLines)
        if pulsed != 0 {
            deviceLines = (levels & ~pulsed) | (~levels & pulsed)
            updateLines()
        }
        deviceLines = levels
        updateLines()
    }

    /// The lines that tell the guest of Xen's events.
    func driveCallback(_ lines: UInt64) {
        guard lines != callbackLines else { return }
        callbackLines = lines
        updateLines()
    }

    func driveNumericError(_ high: Bool) {
        numericLine = high
        updateLines()
    }

    private func updateLines() {
        var next = deviceLines
        if isLegacyReplaced { next &= ~0x101 } else if timerLine { next |= 1 }
        next |= hpetLines | callbackLines
        if numericLine { next |= 1 << 13 }
        var changes = next ^ lines
        lines = next
        while changes != 0 {
            let line = changes.trailingZeroBitCount
            changes &= changes - 1
            let high = next >> UInt64(line) & 1 != 0
            if line < 16 { picPair.input(line, high) }
            if line != 2 { inputs.input(line == 0 ? 2 : line, high) }
        }
    }

    // MARK: messages

    private func deliver(_ message: InterruptMessage, from sender: Int?) {
        var targets = apics.indices.filter {
            apics[$0].state.matches(message.destination, index: $0, sender: sender)
        }
        if message.mode == .lowestPriority {
            let enabled = targets.filter { apics[$0].state.isSoftwareEnabled }
            targets =
                enabled.min { apics[$0].state.processorPriority < apics[$1].state.processorPriority }.map { [$0] }
                ?? []
        }
        for target in targets { deliver(message, to: target) }
    }

    private func deliver(_ message: InterruptMessage, to index: Int) {
        switch message.mode {
        case .fixed, .lowestPriority: return apics[index].accept(vector: message.vector, isLevel: message.isLevel)
        case .nonMaskable: signals[index].nonMaskable = true
        case .initialise: initialise(index)
        case .startup: signals[index].startup = message.vector
        case .external, .systemManagement: return
        }
        calls |= 1 << UInt32(index)
    }

    /// INIT for one processor.
    func initialise(_ index: Int) {
        apics[index].state.reset(.cpu)
        apics[index].settle()
        signals[index] = Signals(initialise: true)
        calls |= 1 << UInt32(index)
    }

    // MARK: processors

    /// Whether the PIC's INT output reaches the boot processor.
    private var takesPIC: Bool {
        let apic = apics[0].state
        guard apic.isEnabled else { return true }
        let entry = apic[.lint0]
        return apic.isSoftwareEnabled && !entry.contains(.masked) && entry.mode == .external
    }

    func hasInterrupt(_ index: Int) -> Bool {
        apics[index].pending != nil || index == 0 && isPICHigh && takesPIC
    }

    private func evaluate(_ index: Int) {
        let bit = UInt32(1) << UInt32(index)
        guard hasInterrupt(index) else {
            announced &= ~bit
            return
        }
        if announced & bit == 0 {
            announced |= bit
            calls |= bit
        }
    }

    /// INTA: the vector to deliver.
    func acknowledge(_ index: Int) -> UInt8? {
        if let vector = apics[index].acknowledge() {
            announced &= ~(1 << UInt32(index))
            return vector
        }
        guard index == 0, isPICHigh, takesPIC else { return nil }
        announced &= ~1
        return picPair.acknowledge()
    }

    func takeSignals(_ index: Int) -> Signals {
        defer { signals[index] = Signals() }
        return signals[index]
    }

    func takeCalls() -> UInt32 {
        defer { calls = 0 }
        return calls
    }

    // MARK: time

    var deadline: Instant? {
        var first = timer.deadline
        func consider(_ deadline: Instant?) {
            guard let deadline else { return }
            first = first.map { min($0, deadline) } ?? deadline
        }
        consider(eventTimer.deadline)
        for apic in apics { consider(apic.deadline) }
        return first
    }

    /// Lets every chip whose deadline has come act.
    func advance(to now: Instant) {
        if let deadline = timer.deadline, deadline <= now { timer.advance(to: now) }
        if let deadline = eventTimer.deadline, deadline <= now { eventTimer.advance(to: now) }
        for apic in apics {
            if let deadline = apic.deadline, deadline <= now { apic.advance(to: now) }
        }
    }
}
