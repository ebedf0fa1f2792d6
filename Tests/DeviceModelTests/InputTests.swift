import DeviceContract
import Input
import Machine
import Testing

/// A keyboard controller with its wires, driven as a guest drives it.
private final class Bench {
    let keyboardIRQ = Wire()
    let mouseIRQ = Wire()
    let a20 = Wire()
    let reset = Wire()
    let chip: I8042
    let slot: Slot
    var now = Instant(nanoseconds: 1_000_000)

    init() {
        chip = I8042(keyboardIRQ: keyboardIRQ, mouseIRQ: mouseIRQ, a20: a20, resetCPU: reset)
        slot = Slot("i8042", chip)
        chip.settle()
    }
    func data(_ value: UInt64) { slot.write(value, Access(region: 0, offset: 0), at: now) }
    func command(_ value: UInt64) { slot.write(value, Access(region: 1, offset: 0), at: now) }
    var status: UInt64 { slot.read(Access(region: 1, offset: 0), at: now) }
    func read() -> UInt64 { slot.read(Access(region: 0, offset: 0), at: now) }
    func wait() { now = now + 1_000_000 }
    /// Everything that comes, a millisecond apart.
    func drain() -> [UInt64] {
        var bytes: [UInt64] = []
        wait()
        while status & 1 != 0, bytes.count < 100 {
            bytes.append(read())
            wait()
        }
        return bytes
    }
    func toMouse(_ bytes: UInt64...) -> [UInt64] {
        bytes.flatMap { byte in
            command(0xD4)
            data(byte)
            return drain()
        }
    }
}

@Suite("8042") struct InputControllerTests {
    @Test func contract() throws {
        try expectContract { I8042(keyboardIRQ: Wire(), mouseIRQ: Wire(), a20: Wire(), resetCPU: Wire()) }
        try expectContract { Port92(a20: Wire(), resetCPU: Wire()) }
    }

    @Test("Self-test answers 0x55 and sets the system flag; interface tests answer zero")
    func selfTest() {
        let bench = Bench()
        bench.command(0xAA)
        #expect(bench.status & 0x0D == 0x0D)
        #expect(bench.read() == 0x55 && bench.status & 1 == 0)
        bench.command(0xAB)
        #expect(bench.read() == 0)
        bench.command(0xA9)
        #expect(bench.read() == 0)
    }

    @Test("The command byte is read and written, and switches both ports")
    func commandByte() {
        let bench = Bench()
        bench.command(0x60)
        bench.data(0x65)
        bench.command(0x20)
        #expect(bench.read() == 0x65)
        bench.command(0xAD)
        bench.command(0xA7)
        bench.command(0x20)
        #expect(bench.read() == 0x75)
        bench.chip.key(0x1E, isDown: true, at: bench.now)
        #expect(bench.drain() == [], "a disabled keyboard keeps its bytes")
        bench.command(0xAE)
        #expect(bench.drain() == [0x1E])
    }

    @Test("Each byte of a key makes an edge on IRQ 1")
    func interrupts() {
        let bench = Bench()
        bench.chip.key(0xC8, isDown: true, at: bench.now)
        #expect(bench.keyboardIRQ.isHigh)
        #expect(bench.read() == 0xE0)
        #expect(!bench.keyboardIRQ.isHigh)
        #expect(bench.chip.deadline != nil)
        bench.wait()
        _ = bench.status
        #expect(bench.keyboardIRQ.isHigh)
        #expect(bench.read() == 0x48)
        #expect(bench.keyboardIRQ.edges == 4 && bench.chip.deadline == nil)
    }

    @Test("Bytes written by 0xD2 and 0xD3 come back as the keyboard's and the mouse's")
    func loopback() {
        let bench = Bench()
        bench.command(0xD2)
        bench.data(0x5A)
        #expect(bench.status & 0x21 == 0x01 && bench.read() == 0x5A)
        bench.command(0xD3)
        bench.data(0xA5)
        #expect(bench.status & 0x21 == 0x21 && bench.mouseIRQ.isHigh && bench.read() == 0xA5)
    }

    @Test("The output port drives A20; 0xFE and port 0x92 pulse the CPU's reset")
    func outputPort() {
        let bench = Bench()
        #expect(bench.a20.isHigh)
        bench.command(0xD1)
        bench.data(0x01)
        #expect(!bench.a20.isHigh)
        bench.command(0xDF)
        #expect(bench.a20.isHigh)
        bench.command(0xFE)
        #expect(bench.reset.edges == 2 && !bench.reset.isHigh)

        let gate = Wire()
        let reset = Wire()
        let joined = A20Gate(gate)
        let port = Slot("92", Port92(a20: joined.fast, resetCPU: reset))
        joined.keyboardController.drive(false)
        port.write(0x03, Access(offset: 0))
        #expect(gate.isHigh && reset.edges == 2)
        port.write(0x01, Access(offset: 0))
        #expect(!gate.isHigh && reset.edges == 2, "bit 0 did not rise")
    }
}

@Suite("PS/2 keyboard") struct InputKeyboardTests {
    @Test("Reset, identify and echo, seen through the translation")
    func commands() {
        let bench = Bench()
        bench.data(0xFF)
        #expect(bench.drain() == [0xFA, 0xAA])
        bench.data(0xF2)
        #expect(bench.drain() == [0xFA, 0xAB, 0x41])
        bench.data(0xEE)
        #expect(bench.drain() == [0xEE])
        bench.data(0xEF)
        #expect(bench.drain() == [0xFE])
        bench.data(0xFE)
        #expect(bench.drain() == [0xFE], "the last byte again")
    }

    @Test("Lights are told to whoever shows them")
    func lights() {
        let bench = Bench()
        var seen: [UInt8] = []
        bench.chip.onLights = { seen.append($0) }
        bench.data(0xED)
        bench.data(0x04)
        #expect(bench.drain() == [0xFA, 0xFA] && seen == [4])
    }

    @Test("Every set 1 code survives set 2 and the translation")
    func translation() {
        let bench = Bench()
        for key in UInt8(0x01)...0x58 where key != 0x55 {
            bench.chip.key(key, isDown: true, at: bench.now)
            bench.chip.key(key, isDown: false, at: bench.now)
            #expect(bench.drain() == [UInt64(key), UInt64(key | 0x80)], "key \(key)")
        }
        bench.chip.key(0xD3, isDown: false, at: bench.now)
        #expect(bench.drain() == [0xE0, 0xD3])
    }

    @Test("Pause and Print Screen have their own sequences")
    func special() {
        let bench = Bench()
        bench.chip.key(0xC6, isDown: true, at: bench.now)
        bench.chip.key(0xC6, isDown: false, at: bench.now)
        #expect(bench.drain() == [0xE1, 0x1D, 0x45, 0xE1, 0x9D, 0xC5])
        bench.chip.key(0xB7, isDown: true, at: bench.now)
        #expect(bench.drain() == [0xE0, 0x2A, 0xE0, 0x37])
        bench.chip.key(0xB7, isDown: false, at: bench.now)
        #expect(bench.drain() == [0xE0, 0xB7, 0xE0, 0xAA])
    }

    @Test("Without translation, sets 1, 2 and 3 come as they are")
    func sets() {
        let bench = Bench()
        bench.command(0x60)
        bench.data(0x03)
        for (set, bytes): (UInt64, [UInt64]) in [
            (2, [0x76, 0xF0, 0x76]), (3, [0x08, 0xF0, 0x08]), (1, [0x01, 0x81]),
        ] {
            bench.data(0xF0)
            bench.data(set)
            #expect(bench.drain() == [0xFA, 0xFA])
            bench.chip.key(0x01, isDown: true, at: bench.now)
            bench.chip.key(0x01, isDown: false, at: bench.now)
            #expect(bench.drain() == bytes, "set \(set)")
        }
        bench.data(0xF0)
        bench.data(0)
        #expect(bench.drain() == [0xFA, 0xFA, 1])
    }

    @Test("A disabled keyboard is silent")
    func disabled() {
        let bench = Bench()
        bench.data(0xF5)
        #expect(bench.drain() == [0xFA])
        bench.chip.key(0x1E, isDown: true, at: bench.now)
        #expect(bench.drain() == [])
        bench.data(0xF4)
        bench.chip.key(0x1E, isDown: true, at: bench.now)
        #expect(bench.drain() == [0xFA, 0x1E])
    }
}

@Suite("PS/2 mouse") struct InputMouseTests {
    @Test("Reset, identify, and the wheel's knock sequence")
    func identify() {
        let bench = Bench()
        #expect(bench.toMouse(0xFF) == [0xFA, 0xAA, 0x00])
        #expect(bench.toMouse(0xF2) == [0xFA, 0x00])
        _ = bench.toMouse(0xF3, 200, 0xF3, 100, 0xF3, 80)
        #expect(bench.toMouse(0xF2) == [0xFA, 0x03])
        _ = bench.toMouse(0xF3, 200, 0xF3, 200, 0xF3, 80)
        #expect(bench.toMouse(0xF2) == [0xFA, 0x04])
    }

    @Test("Movement is reported in three bytes once it is enabled, up positive, by IRQ 12")
    func stream() {
        let bench = Bench()
        bench.chip.move(dx: 5, dy: 5, buttons: 0, at: bench.now)
        #expect(bench.drain() == [])
        #expect(bench.toMouse(0xF4) == [0xFA])
        bench.chip.move(dx: 5, dy: 3, buttons: 1, at: bench.now)
        #expect(bench.mouseIRQ.isHigh && bench.status & 0x21 == 0x21)
        #expect(bench.drain() == [0x29, 5, 0xFD])
    }

    @Test("Large movements become several packets; button changes are never merged")
    func backlog() {
        let bench = Bench()
        _ = bench.toMouse(0xF4)
        bench.chip.move(dx: -300, dy: 0, buttons: 0, at: bench.now)
        bench.chip.move(dx: 0, dy: 0, buttons: 1, at: bench.now)
        bench.chip.move(dx: 0, dy: 0, buttons: 0, at: bench.now)
        #expect(bench.drain() == [0x18, 0x01, 0, 0x18, 0xD3, 0, 0x09, 0, 0, 0x08, 0, 0])
    }

    @Test("The wheel is a fourth byte")
    func wheel() {
        let bench = Bench()
        _ = bench.toMouse(0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF4)
        bench.chip.move(dx: 0, dy: 0, wheel: -1, buttons: 0, at: bench.now)
        #expect(bench.drain() == [0x08, 0, 0, 0xFF])
    }

    @Test("Status, resolution, rate; remote mode answers when asked; wrap mode echoes")
    func modes() {
        let bench = Bench()
        _ = bench.toMouse(0xE8, 3, 0xF3, 40, 0xE7)
        #expect(bench.toMouse(0xE9) == [0xFA, 0x10, 3, 40])
        _ = bench.toMouse(0xF0)
        bench.chip.move(dx: 1, dy: 0, buttons: 0, at: bench.now)
        #expect(bench.drain() == [])
        #expect(bench.toMouse(0xEB) == [0xFA, 0x08, 1, 0])
        #expect(bench.toMouse(0xEE, 0x42, 0xEC) == [0xFA, 0x42, 0xFA])
    }
}
