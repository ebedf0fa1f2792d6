// State of the PC16550D.
// Source: PC16550D datasheet, §8; reset values from table I.
// Modelled: see UART16550.swift.
// Quirks: the divisor's reset value is undefined on the chip; here it is 9600 baud.

internal import Ioreq
public import Machine

extension UART16550 {
    /// Everything a guest can tell apart.
    public struct State: DeviceState {
        public static let schema = Schema("uart16550", 1)
        static let depth = 16
        public private(set) var interruptEnable: InterruptEnable = []
        public private(set) var fifoControl: FIFOControl = []
        public private(set) var lineControl: LineControl = []
        public private(set) var modemControl: ModemControl = []
        public private(set) var lineStatus: LineStatus = [.holdingEmpty, .transmitterEmpty]
        /// The deltas; the lines themselves follow from `modemControl`.
        public private(set) var modemDeltas: UInt8 = 0
        public private(set) var scratch: UInt8 = 0
        public private(set) var divisor: UInt16 = 12
        /// THRE interrupt waits; IIR reading and a new byte take it back.
        public private(set) var transmitterEmptied = false
        public private(set) var received: [UInt8] = []
        public private(set) var timedOut = false
        public private(set) var now = Instant.zero
        /// When a byte last came or was read.
        public private(set) var lastActivity = Instant.zero
        public init() {}
        public mutating func reset(_ cause: ResetCause) {
            if cause == .powerOn { self = State() }
        }

        /// A FIFO holds 16 bytes, the 16450's register one.
        public var room: Int { max(0, (fifoControl.contains(.enable) ? Self.depth : 1) - received.count) }
        private var trigger: Int { fifoControl.contains(.enable) ? fifoControl.trigger : 1 }

        /// Nanoseconds one character takes: start, data, parity and stop bits at 1.8432 MHz / 16 / divisor.
        private var characterTime: UInt64 {
            let bits = 7 + UInt64(lineControl.wordLength) + (lineControl.contains(.parity) ? 1 : 0)
            return bits * UInt64(max(divisor, 1)) * 8_681
        }

        /// The timeout comes after four characters' time without activity (§8.11).
        var deadline: Instant? {
            guard interruptEnable.contains(.receivedData), fifoControl.contains(.enable) else { return nil }
            guard !received.isEmpty, received.count < trigger, !timedOut else { return nil }
            return lastActivity + 4 * characterTime
        }

        mutating func advance(to instant: Instant) {
            guard instant > now else { return }
            now = instant
            if let deadline, deadline <= now { timedOut = true }
        }

        mutating func receive(_ byte: UInt8) {
            guard room > 0 else {
                lineStatus.insert(.overrun)
                return
            }
            received.append(byte)
            lastActivity = now
            timedOut = false
        }

        /// The highest source that waits (§8.6, table V).
        public var interrupt: Source? {
            if interruptEnable.contains(.lineStatus), lineStatus.contains(.overrun) { return .lineStatus }
            if interruptEnable.contains(.receivedData) {
                if received.count >= trigger { return .receivedData }
                if timedOut, !received.isEmpty { return .characterTimeout }
            }
            if interruptEnable.contains(.transmitterEmpty), transmitterEmptied { return .transmitterEmpty }
            if interruptEnable.contains(.modemStatus), modemDeltas != 0 { return .modemStatus }
            return nil
        }

        /// The lines: the cable's, or in loop-back our own outputs (§8.8).
        private var modemLines: ModemStatus {
            guard modemControl.contains(.loop) else { return .connected }
            var lines: ModemStatus = []
            if modemControl.contains(.requestToSend) { lines.insert(.clearToSend) }
            if modemControl.contains(.dataTerminalReady) { lines.insert(.dataSetReady) }
            if modemControl.contains(.out1) { lines.insert(.ring) }
            if modemControl.contains(.out2) { lines.insert(.carrier) }
            return lines
        }
    }
}

/// What reads without effect give.
extension UART16550.State {
    var resting: RestingSerial {
        let latches = lineControl.contains(.divisorLatch)
        var resting = RestingSerial(sends: !latches && !modemControl.contains(.loop))
        resting[1] = latches ? UInt8(truncatingIfNeeded: divisor >> 8) : interruptEnable.rawValue
        resting[2] = interrupt == .transmitterEmpty ? nil : identification
        resting[3] = lineControl.rawValue
        resting[4] = modemControl.rawValue
        resting[5] = lineStatus.contains(.overrun) ? nil : shownLineStatus
        resting[6] = modemDeltas == 0 ? modemLines.rawValue : nil
        return resting
    }

    private var shownLineStatus: UInt8 {
        lineStatus.rawValue | (received.isEmpty ? 0 : UART16550.LineStatus.dataReady.rawValue)
    }

    private var identification: UInt8 {
        (interrupt?.rawValue ?? UART16550.Source.none) | (fifoControl.contains(.enable) ? 0xC0 : 0)
    }
}

/// Register accesses.
extension UART16550.State {
    public mutating func read(_ offset: UInt64) throws(BusFault) -> UInt8 {
        switch (offset, lineControl.contains(.divisorLatch)) {
        case (0, true): return UInt8(truncatingIfNeeded: divisor)
        case (1, true): return UInt8(truncatingIfNeeded: divisor >> 8)
        case (0, false): return readReceiver()
        case (1, false): return interruptEnable.rawValue
        case (2, _): return readIdentification()
        case (3, _): return lineControl.rawValue
        case (4, _): return modemControl.rawValue
        case (5, _):
            defer { lineStatus.remove(.overrun) }
            return shownLineStatus
        case (6, _):
            defer { modemDeltas = 0 }
            return modemLines.rawValue | modemDeltas
        case (7, _): return scratch
        default: throw .noRegister
        }
    }

    private mutating func readReceiver() -> UInt8 {
        guard !received.isEmpty else { return 0 }
        lastActivity = now
        timedOut = false
        return received.removeFirst()
    }

    private mutating func readIdentification() -> UInt8 {
        defer { if interrupt == .transmitterEmpty { transmitterEmptied = false } }
        return identification
    }

    /// A byte to send down the cable, if that is what the write brought.
    public mutating func write(_ byte: UInt8, _ offset: UInt64) throws(BusFault) -> UInt8? {
        switch (offset, lineControl.contains(.divisorLatch)) {
        case (0, true): divisor = divisor & 0xFF00 | UInt16(byte)
        case (1, true): divisor = divisor & 0x00FF | UInt16(byte) << 8
        case (0, false): return send(byte)
        case (1, false): enable(UART16550.InterruptEnable(rawValue: byte))
        case (2, _): control(UART16550.FIFOControl(rawValue: byte))
        case (3, _): lineControl = UART16550.LineControl(rawValue: byte)
        case (4, _): drive(UART16550.ModemControl(rawValue: byte))
        case (5, _), (6, _): return nil  // for factory tests only
        case (7, _): scratch = byte
        default: throw .noRegister
        }
        return nil
    }

    private mutating func send(_ byte: UInt8) -> UInt8? {
        transmitterEmptied = true
        guard modemControl.contains(.loop) else { return byte }
        receive(byte)
        return nil
    }

    /// Enabling the transmitter's interrupt while it is empty raises it at once.
    private mutating func enable(_ wanted: UART16550.InterruptEnable) {
        let before = interruptEnable
        interruptEnable = wanted.intersection(.implemented)
        if !before.contains(.transmitterEmpty), interruptEnable.contains(.transmitterEmpty) {
            transmitterEmptied = true
        }
    }

    /// The other bits count only together with the enable bit; changing that empties both FIFOs (§8.5).
    private mutating func control(_ wanted: UART16550.FIFOControl) {
        let toggled = wanted.contains(.enable) != fifoControl.contains(.enable)
        if toggled || wanted.contains(.clearReceiver) {
            received = []
            timedOut = false
        }
        fifoControl =
            wanted.contains(.enable) ? wanted.subtracting([.clearReceiver, .clearTransmitter]) : []
    }

    /// Line changes set deltas; ring tells only its trailing edge (§8.9).
    private mutating func drive(_ wanted: UART16550.ModemControl) {
        let before = modemLines
        modemControl = wanted.intersection(.implemented)
        let after = modemLines
        let ring = UART16550.ModemStatus.ring.rawValue
        var changed = (before.rawValue ^ after.rawValue) & ~ring
        changed |= before.rawValue & ~after.rawValue & ring
        modemDeltas |= changed >> 4
    }
}
