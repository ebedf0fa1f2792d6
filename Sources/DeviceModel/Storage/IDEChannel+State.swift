// What a guest can tell about an IDE channel: two drives, the control register, the bus master's half.
// Source: ATA/ATAPI-6 §6 (registers), §7.3 (device 0 answering for an absent device 1).
// Modelled: register file with HOB, nIEN, SRST, both devices. Not modelled: DASP/PDIAG.
// Quirk: a command is not taken while the other drive of the cable is busy; hardware would mix both up.
public import Machine

extension IDEChannel {
    public struct State: DeviceState {
        public static let schema = Schema("ide-channel", 1)
        public internal(set) var drives: [IDEDrive]
        var selected = 0
        /// Device control: bit 1 nIEN, bit 2 SRST, bit 7 HOB.
        var control: UInt8 = 0
        /// Level of the channel's INTRQ.
        var interrupt = false
        var busMaster = IDEBusMaster()

        init(drives: [IDEDrive]) { self.drives = drives }

        private enum CodingKeys: CodingKey { case drives, selected, control, interrupt, busMaster }
        public init(from decoder: any Decoder) throws {
            let values = try decoder.container(keyedBy: CodingKeys.self)
            drives = try values.decode([IDEDrive].self, forKey: .drives)
            selected = try values.decode(Int.self, forKey: .selected)
            control = try values.decode(UInt8.self, forKey: .control)
            interrupt = try values.decode(Bool.self, forKey: .interrupt)
            busMaster = try values.decode(IDEBusMaster.self, forKey: .busMaster)
            guard drives.count == 2, (0...1).contains(selected), drives.allSatisfy(\.isConsistent) else {
                throw DecodingError.dataCorruptedError(forKey: .drives, in: values, debugDescription: "not a channel")
            }
        }

        public mutating func reset(_ cause: ResetCause) {
            guard cause == .powerOn else { return }
            for index in drives.indices { drives[index].powerOn() }
            (selected, control, interrupt, busMaster) = (0, 0, false, IDEBusMaster())
        }

        var drive: IDEDrive {
            get { drives[selected] }
            _modify { yield &drives[selected] }
        }

        /// Sets INTRQ from its sources; its rising edge is kept in the bus master's status.
        mutating func updateInterrupt() {
            let level = drive.interrupt && control & 0x02 == 0 && drive.kind != .none
            if level, !interrupt { busMaster.status |= 4 }
            interrupt = level
        }

        // MARK: Command block

        mutating func readRegister(_ offset: UInt64) -> UInt8 {
            guard drive.kind != .none else { return absent(offset) }
            let older = control & 0x80 != 0
            func pick(_ register: UInt16) -> UInt8 { UInt8(truncatingIfNeeded: older ? register >> 8 : register) }
            switch offset {
            case 1: return drive.error
            case 2: return pick(drive.count)
            case 3: return pick(drive.low)
            case 4: return pick(drive.mid)
            case 5: return pick(drive.high)
            case 6: return drive.device & 0x4F | 0xA0 | UInt8(selected << 4)
            default: return drive.status
            }
        }

        /// Device 0 answers for an absent device 1 with a status of 0. The other registers read as 0 too: ATA-6 §9.16
        /// would show device 0's, and some guests then take a lone CD drive's signature for a second one.
        private func absent(_ offset: UInt64) -> UInt8 {
            let other = drives[selected ^ 1]
            return other.kind != .none && offset == 6 ? other.device & 0x4F | 0xA0 | UInt8(selected << 4) : 0
        }

        /// Both drives take what is written to the task file (§6.2).
        mutating func writeRegister(_ value: UInt8, _ offset: UInt64) {
            control &= ~0x80
            func push(_ register: inout UInt16) { register = register << 8 | UInt16(value) }
            if offset == 6 { selected = Int(value >> 4 & 1) }
            for index in drives.indices where drives[index].status & IDEStatus.busy == 0 {
                switch offset {
                case 1: push(&drives[index].feature)
                case 2: push(&drives[index].count)
                case 3: push(&drives[index].low)
                case 4: push(&drives[index].mid)
                case 5: push(&drives[index].high)
                default: drives[index].device = value
                }
            }
        }

        /// Whether the selected drive would take `command` now.
        func accepts(_ command: UInt8) -> Bool {
            guard drive.kind != .none, control & 0x04 == 0 else { return false }
            if drive.kind == .cdrom, command == 0x08 { return true }
            let other = drives[selected ^ 1]
            return drive.status & IDEStatus.busy == 0 && other.phase == .idle
        }

        mutating func execute(_ command: UInt8) {
            // EXECUTE DEVICE DIAGNOSTIC goes to both drives, and selects device 0 (§8.11).
            guard command == 0x90 else { return drive.execute(command) }
            for index in drives.indices where drives[index].kind != .none {
                drives[index].resetEnded()
                drives[index].interrupt = index == 0
            }
            selected = 0
        }

        /// Device control. True if SRST began, which ends all that is under way.
        mutating func writeControl(_ value: UInt8) -> Bool {
            let rising = value & ~control & 0x04 != 0
            let falling = control & ~value & 0x04 != 0
            control = value & 0x86
            for index in drives.indices where drives[index].kind != .none {
                if rising {
                    drives[index].idle()
                    drives[index].phase = .reset
                    drives[index].status = IDEStatus.busy
                } else if falling {
                    drives[index].resetEnded()
                }
            }
            if rising { selected = 0 }
            return rising
        }

        // MARK: Requests

        /// What the drives want from their media now: at most one request a channel.
        var request: Request? {
            for (index, drive) in drives.enumerated() {
                switch drive.phase {
                case .fill: return Request(drive: index, kind: .fill)
                case .drain: return Request(drive: index, kind: .drain)
                case .flush: return Request(drive: index, kind: .flush)
                case .dma where busMaster.isActive: return Request(drive: index, kind: .dma)
                default: continue
                }
            }
            return nil
        }
    }

    /// Something to be done outside the state.
    struct Request: Equatable {
        enum Kind { case fill, drain, flush, dma }
        var drive: Int
        var kind: Kind
    }
}

/// The registers that drivers read with every command.
public struct RestingRegisters: Equatable {
    public let status: UInt8
    public let selected: Int
    /// Reading the status register takes an interrupt back; reading the alternate one does not.
    public let isInterrupting: Bool
    public let busMasterCommand: UInt8
    public let busMasterStatus: UInt8

    init(_ state: IDEChannel.State) {
        let drive = state.drive
        status = drive.kind == .none ? 0 : drive.status
        isInterrupting = drive.interrupt || state.interrupt
        selected = state.selected
        (busMasterCommand, busMasterStatus) = (state.busMaster.command, state.busMaster.status)
    }
}

extension IDEDrive {
    /// Whether a loaded state keeps the rules that the code relies on.
    var isConsistent: Bool {
        let shape = disk.heads > 0 && disk.sectorsPerTrack > 0 && disk.cylinders >= 0 && disk.cylinders <= 65_535
        let bounds = disk.heads <= 16 && disk.sectorsPerTrack <= 255 && (0...16).contains(disk.multiple)
        let end = kind == .cdrom ? blocks &* 2048 : blocks &* 512
        let inside = transfer.remaining <= end && transfer.offset <= end - transfer.remaining
        return buffer.count <= Self.bufferBytes && hasRoom && shape && bounds && inside
            && (1...65_535).contains(transfer.block)
            && (0...16_383).contains(disk.defaultCylinders) && blocks < 1 << 48
    }

    private var hasRoom: Bool {
        switch phase {
        case .dataIn: return position >= 0 && position <= blockEnd && blockEnd <= buffer.count
        case .dataOut, .packet: return position == buffer.count && position <= blockEnd && blockEnd <= Self.bufferBytes
        case .dma: return position >= 0 && position <= buffer.count
        default: return true
        }
    }
}
