// Register access: the xAPIC window (offset >> 4) and x2APIC MSRs share their numbers.

internal import Machine
internal import Registers

extension LocalAPIC.State {
    typealias Action = LocalAPIC.Action

    /// Register `number`, i.e. offset / 16 (table 11-1).
    func read(_ number: UInt8) -> UInt32 {
        switch number {
        case 0x02: return isX2 ? initialID : UInt32(id) << 24
        case 0x03: return 0x0005_0014  // six LVT entries
        case 0x08: return UInt32(taskPriority)
        case 0x0A: return UInt32(processorPriority)
        case 0x0D: return isX2 ? x2LogicalID : logicalDestination
        case 0x0E: return destinationFormat
        case 0x0F: return spurious
        case 0x10...0x17: return inService.word(Int(number) - 0x10)
        case 0x18...0x1F: return triggerMode.word(Int(number) - 0x18)
        case 0x20...0x27: return requested.word(Int(number) - 0x20)
        case 0x28: return errorStatus
        case 0x30: return UInt32(truncatingIfNeeded: command)
        case 0x31: return UInt32(truncatingIfNeeded: command >> 32)
        case 0x32...0x37: return LocalAPIC.Source(rawValue: Int(number) - 0x32).map { self[$0].rawValue } ?? 0
        case 0x38: return initialCount
        case 0x39: return currentCount
        case 0x3E: return divide
        default: return 0
        }
    }

    mutating func write(_ number: UInt8, _ value: UInt32) -> Action {
        switch number {
        case 0x02: if !isX2 { id = UInt8(value >> 24) }
        case 0x08: taskPriority = UInt8(truncatingIfNeeded: value)
        case 0x0B: return endOfInterrupt().map { .ended($0) } ?? .none
        case 0x0D: if !isX2 { logicalDestination = value & 0xFF00_0000 }
        case 0x0E: if !isX2 { destinationFormat = value | 0x0FFF_FFFF }
        case 0x0F: writeSpurious(value)
        case 0x28: (errorStatus, errors) = (errors, 0)
        case 0x30:
            command = command & 0xFFFF_FFFF_0000_0000 | UInt64(value & 0xC_CFFF)
            return sendCommand()
        case 0x31: command = command & 0xFFFF_FFFF | UInt64(value) << 32
        case 0x32...0x37: writeVector(Int(number) - 0x32, value)
        case 0x38: startTimer(value)
        case 0x3E: writeDivide(value & 0xB)
        default: break
        }
        return .none
    }

    /// Disabling by software masks every LVT entry (§11.4.7.2).
    private mutating func writeSpurious(_ value: UInt32) {
        spurious = value & 0x3FF
        guard value & 0x100 == 0 else { return }
        for source in LocalAPIC.Source.allCases { self[source].insert(.masked) }
    }

    private mutating func writeVector(_ index: Int, _ value: UInt32) {
        guard let source = LocalAPIC.Source(rawValue: index) else { return }
        let wasDeadline = self[source].timerMode == 2
        self[source] = self[source].written(value, writable: source.writable)
        if spurious & 0x100 == 0 { self[source].insert(.masked) }
        // A change to or from TSC-deadline mode disarms the timer (§11.5.4.1).
        if source == .timer, wasDeadline != (self[source].timerMode == 2) { (timerStart, tscDeadline) = (nil, 0) }
    }

    /// ICR (§11.6.1): bits 19:18 shorthand, 15 trigger, 14 level, 11 logical, 10:8 mode.
    private mutating func sendCommand() -> Action {
        let low = UInt32(truncatingIfNeeded: command)
        guard let mode = DeliveryMode(rawValue: UInt8(low >> 8 & 7)), mode != .external, mode != .systemManagement
        else { return .none }
        // INIT level de-assert only synchronises arbitration ids.
        if mode == .initialise, low & 0xC000 == 0x8000 { return .none }
        let vector = UInt8(truncatingIfNeeded: low)
        if mode == .fixed || mode == .lowestPriority, vector < 16 {
            raise(error: 0x20)
            return .none
        }
        let target = isX2 ? UInt32(truncatingIfNeeded: command >> 32) : UInt32(command >> 56)
        let destination: InterruptMessage.Destination
        switch low >> 18 & 3 {
        case 1: destination = .sender
        case 2: destination = .everybody
        case 3: destination = .everybodyElse
        default: destination = low & 0x800 == 0 ? .physical(target) : .logical(target)
        }
        return .send(InterruptMessage(mode, vector: vector, to: destination))
    }

    // MARK: MSRs

    func readMSR(_ number: UInt32) -> UInt64? {
        switch number {
        case 0x1B: return base
        case 0x6E0: return tscDeadline
        case 0x830 where isX2: return command
        case 0x800...0x8FF where isX2:
            let register = UInt8(truncatingIfNeeded: number)
            return isReadable(register) ? UInt64(read(register)) : nil
        default: return nil
        }
    }

    /// nil: #GP.
    mutating func writeMSR(_ number: UInt32, _ value: UInt64) -> Action? {
        switch number {
        case 0x1B: return writeBase(value) ? Action.none : nil
        case 0x6E0:
            if self[.timer].timerMode == 2 { tscDeadline = value }
            return Action.none
        case 0x830 where isX2:
            command = value & 0xFFFF_FFFF_000C_CFFF
            return sendCommand()
        case 0x83F where isX2:
            guard value < 0x100 else { return nil }
            return .send(InterruptMessage(.fixed, vector: UInt8(value), to: .sender))
        case 0x800...0x8FF where isX2:
            let register = UInt8(truncatingIfNeeded: number)
            guard isWritable(register), value >> 32 == 0 else { return nil }
            // EOI and ESR take only zero (§11.12.1.3).
            if register == 0x0B || register == 0x28, value != 0 { return nil }
            if register == 0x08, value > 0xFF { return nil }
            return write(register, UInt32(truncatingIfNeeded: value))
        default: return nil
        }
    }

    /// IA32_APIC_BASE (§11.4.4, §11.12.5): x2APIC mode is entered from xAPIC and left through "disabled".
    private mutating func writeBase(_ value: UInt64) -> Bool {
        guard value & 0xFFFF_FF00_0000_02FF == 0 else { return false }
        let (old, new) = (base & 0xC00, value & 0xC00)
        if new == 0x400 || old == 0xC00 && new == 0x800 || old == 0 && new == 0xC00 { return false }
        if new == 0, old != 0 { reset(.cpu) }
        base = value & ~0x100 | (isBootProcessor ? 0x100 : 0)
        return true
    }

    /// Registers that exist in x2APIC mode (table 11-6).
    private func isReadable(_ register: UInt8) -> Bool {
        switch register {
        case 0x02, 0x03, 0x08, 0x0A, 0x0D, 0x0F, 0x10...0x28, 0x32...0x39, 0x3E: return true
        default: return false
        }
    }
    private func isWritable(_ register: UInt8) -> Bool {
        switch register {
        case 0x08, 0x0B, 0x0F, 0x28, 0x32...0x38, 0x3E: return true
        default: return false
        }
    }
}
