// The 8042's registers and commands.
// Source: IBM PS/2 Technical Reference, "Keyboard and auxiliary device controller".
// Modelled: see I8042. Not modelled: parity and time-out errors, which a working device does not make.
// Quirks: answers of the controller itself come before bytes of the devices.

public import Machine
public import Registers

extension I8042 {
    /// Port 0x64 when read.
    public struct Status: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let outputFull = bit(0)
        public static let inputFull = bit(1)
        /// The system flag of the command byte: self-test passed.
        public static let system = bit(2)
        /// The last write was to port 0x64.
        public static let command = bit(3)
        /// The keyboard lock is open.
        public static let unlocked = bit(4)
        /// The output buffer holds a byte of the mouse.
        public static let fromMouse = bit(5)
    }

    /// The controller's command byte.
    public struct CommandByte: Register {
        public var rawValue: UInt8
        public init(rawValue: UInt8) { self.rawValue = rawValue }
        public static let keyboardInterrupt = bit(0)
        public static let mouseInterrupt = bit(1)
        public static let system = bit(2)
        public static let keyboardDisabled = bit(4)
        public static let mouseDisabled = bit(5)
        public static let translates = bit(6)
    }

    /// A byte in, or on its way to, the output buffer.
    struct Output: Codable, Equatable, Sendable {
        var byte: UInt8
        var isFromMouse: Bool
    }

    public struct State: DeviceState {
        public static let schema = Schema("i8042", 1)
        public var command: CommandByte = [.keyboardInterrupt, .mouseInterrupt, .translates]
        public var keyboard = PS2Keyboard()
        public var mouse = PS2Mouse()
        /// Bit 0: CPU not in reset; bit 1: A20 open.
        public var outputPort: UInt8 = 0x03
        /// The controller's own memory; byte 0 is the command byte.
        var ram = [UInt8](repeating: 0, count: 32)
        var output: Output?
        /// Answers that wait for the output buffer.
        var answers: [Output] = []
        /// A command of port 0x64 that waits for a byte at 0x60.
        var pending: UInt8?
        var lastWasCommand = false
        /// The keyboard's break prefix was seen and becomes bit 7 of the next byte.
        var breaks = false
        /// No device byte enters the output buffer before.
        var quietUntil = Instant.zero

        public init() {}

        /// The controller is not wired to the CPU's INIT line.
        public mutating func reset(_ cause: ResetCause) { if cause == .powerOn { self = State() } }
    }
}

extension I8042.State {
    var status: I8042.Status {
        var status: I8042.Status = [.unlocked]
        if command.contains(.system) { status.insert(.system) }
        if lastWasCommand { status.insert(.command) }
        if let output {
            status.insert(.outputFull)
            if output.isFromMouse { status.insert(.fromMouse) }
        }
        return status
    }

    var raisesKeyboardIRQ: Bool { command.contains(.keyboardInterrupt) && output?.isFromMouse == false }
    var raisesMouseIRQ: Bool { command.contains(.mouseInterrupt) && output?.isFromMouse == true }

    private var keyboardSpeaks: Bool { !command.contains(.keyboardDisabled) && !keyboard.output.isEmpty }
    private var mouseSpeaks: Bool { !command.contains(.mouseDisabled) && mouse.hasOutput }

    /// When the next byte of a device enters the empty output buffer.
    var deadline: Instant? { output == nil && (keyboardSpeaks || mouseSpeaks) ? quietUntil : nil }

    /// Fills the output buffer if it is empty: controller first, then keyboard, then mouse.
    mutating func deliver(at now: Instant) {
        guard output == nil else { return }
        if !answers.isEmpty {
            output = answers.removeFirst()
            return
        }
        guard now >= quietUntil else { return }
        while output == nil, keyboardSpeaks, let byte = keyboard.next() {
            output = translated(byte).map { I8042.Output(byte: $0, isFromMouse: false) }
        }
        if output == nil, mouseSpeaks, let byte = mouse.next() {
            output = I8042.Output(byte: byte, isFromMouse: true)
        }
    }

    /// What a keyboard's byte becomes; nil for a break prefix that is kept for the next.
    private mutating func translated(_ byte: UInt8) -> UInt8? {
        guard command.contains(.translates) else { return byte }
        if byte == 0xF0 {
            breaks = true
            return nil
        }
        defer { breaks = false }
        return ScanCodes.translated(byte) | (breaks ? 0x80 : 0)
    }

    /// Reading an empty buffer shows zero.
    mutating func readData(at now: Instant) -> UInt8 {
        guard let taken = output else { return 0 }
        output = nil
        quietUntil = now + I8042.pace
        if !answers.isEmpty { deliver(at: now) }
        return taken.byte
    }

    private mutating func answer(_ byte: UInt8, fromMouse: Bool = false, at now: Instant) {
        if answers.count < 16 { answers.append(I8042.Output(byte: byte, isFromMouse: fromMouse)) }
        deliver(at: now)
    }

    /// Port 0x64. Answers whether the CPU is to be reset.
    mutating func writeCommand(_ byte: UInt8, at now: Instant) -> Bool {
        lastWasCommand = true
        pending = nil
        switch byte {
        case 0x20: answer(command.rawValue, at: now)
        case 0x21...0x3F: answer(ram[Int(byte & 0x1F)], at: now)
        case 0x60...0x7F, 0xCB, 0xD1...0xD4: pending = byte
        case 0xA4: answer(0xF1, at: now)  // no password
        case 0xA7: command.insert(.mouseDisabled)
        case 0xA8: command.remove(.mouseDisabled)
        case 0xA9, 0xAB: answer(0, at: now)  // interface tests: no error
        case 0xAA:
            command.insert(.system)
            answer(0x55, at: now)
        case 0xAD: command.insert(.keyboardDisabled)
        case 0xAE: command.remove(.keyboardDisabled)
        case 0xC0: answer(0x80, at: now)  // input port: keyboard not locked
        case 0xD0: answer(outputPortNow, at: now)
        case 0xDD: outputPort &= ~2
        case 0xDF: outputPort |= 2
        case 0xE0: answer(0, at: now)  // test inputs: clock and data low
        case 0xF0...0xFF: return byte & 1 == 0
        default: break
        }
        deliver(at: now)
        return false
    }

    /// The output port with the interrupt lines that it shows.
    private var outputPortNow: UInt8 {
        outputPort & 0xCF | (raisesKeyboardIRQ ? 0x10 : 0) | (raisesMouseIRQ ? 0x20 : 0)
    }

    /// Port 0x60: the argument of a command, or a byte for the keyboard.
    mutating func writeData(_ byte: UInt8, at now: Instant) -> Bool {
        lastWasCommand = false
        defer { deliver(at: now) }
        guard let waiting = pending else {
            command.remove(.keyboardDisabled)
            keyboard.receive(byte)
            delay(now)
            return false
        }
        pending = nil
        switch waiting {
        case 0x60: command = I8042.CommandByte(rawValue: byte & 0x77)
        case 0x61...0x7F: if ram.indices.contains(Int(waiting & 0x1F)) { ram[Int(waiting & 0x1F)] = byte }
        case 0xD1:
            outputPort = byte | 1
            return byte & 1 == 0
        case 0xD2: answer(byte, at: now)
        case 0xD3: answer(byte, fromMouse: true, at: now)
        case 0xD4:
            command.remove(.mouseDisabled)
            mouse.receive(byte)
            delay(now)
        default: break
        }
        return false
    }

    /// A device takes its time to answer.
    private mutating func delay(_ now: Instant) { quietUntil = max(quietUntil, now + I8042.pace) }
}
