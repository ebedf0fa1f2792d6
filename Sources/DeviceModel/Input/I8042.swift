// The keyboard controller with a keyboard and a mouse: ports 0x60 and 0x64, IRQ 1 and 12, A20, CPU reset.
// Source: IBM PS/2 Technical Reference, "Keyboard and auxiliary device controller"; Intel UPI-41/8042 data sheet.
// Modelled: all PS/2 commands, translation, both ports, output port. Not modelled: password, input port jumpers.
// Quirks: a device's next byte comes 100 microseconds after the last was read, so each makes its own interrupt edge.

public import Machine

/// The 8042. It holds both devices: what they say goes through its one output buffer.
public final class I8042: Device {
    /// From one byte of a device to its next, in nanoseconds.
    static let pace: UInt64 = 100_000

    public let regions = [
        Region("keyboard data", .port, 0x60...0x60),
        Region("keyboard command", .port, 0x64...0x64),
    ]
    private let keyboardIRQ: any Line
    private let mouseIRQ: any Line
    private let a20: any Line
    /// High while the CPU is held in reset: a pulse.
    private let resetCPU: any Line
    /// Told the keyboard's lights (bit 0 Scroll Lock, 1 Num Lock, 2 Caps Lock) when they change.
    public var onLights: (UInt8) -> Void = { _ in }
    private var now = Instant.zero
    private var shownLights: UInt8 = 0
    public var state = State()

    public init(keyboardIRQ: any Line, mouseIRQ: any Line, a20: any Line, resetCPU: any Line) {
        (self.keyboardIRQ, self.mouseIRQ, self.a20, self.resetCPU) = (keyboardIRQ, mouseIRQ, a20, resetCPU)
    }

    public var deadline: Instant? { state.deadline }

    public func advance(to now: Instant) {
        self.now = max(self.now, now)
        state.deliver(at: self.now)
    }

    public func read(_ access: Access) throws(BusFault) -> UInt64 {
        access.region == 0 ? UInt64(state.readData(at: now)) : UInt64(state.status.rawValue)
    }

    public func write(_ value: UInt64, _ access: Access) throws(BusFault) {
        let byte = UInt8(truncatingIfNeeded: value)
        let resets = access.region == 0 ? state.writeData(byte, at: now) : state.writeCommand(byte, at: now)
        guard resets else { return }
        resetCPU.drive(true)
        resetCPU.drive(false)
    }

    public func settle() {
        keyboardIRQ.drive(state.raisesKeyboardIRQ)
        mouseIRQ.drive(state.raisesMouseIRQ)
        a20.drive(state.outputPort & 2 != 0)
        guard shownLights != state.keyboard.lights else { return }
        shownLights = state.keyboard.lights
        onLights(shownLights)
    }
}

// MARK: - The user's side

extension I8042 {
    /// A key of the keyboard: set 1 scan code, bit 7 for an 0xE0 prefix.
    public func key(_ key: UInt8, isDown: Bool, at now: Instant) {
        advance(to: now)
        state.keyboard.key(key, isDown: isDown)
        state.deliver(at: self.now)
        settle()
    }

    /// The mouse moved (down positive); buttons: bit 0 left, 1 right, 2 middle.
    public func move(dx: Int, dy: Int, wheel: Int = 0, buttons: UInt8, at now: Instant) {
        advance(to: now)
        state.mouse.move(dx: dx, dy: dy, wheel: wheel, buttons: buttons)
        state.deliver(at: self.now)
        settle()
    }
}
