// What a guest can tell about the floppy controller: registers, command in progress, drives.
// Source: Intel 82077AA datasheet 290166-007, §2.1 (registers), §3.2 (phases), §6 (status registers).
// Modelled: DOR, TDR, MSR, DSR, FIFO, DIR, CCR. Not modelled: the PS/2 and Model 30 forms of status A and B.
// Quirk: the disk-change bit stays until the drive steps with a disk in it; Linux and DOS both rely on it.
internal import Images
public import Machine

extension FDC82077 {
    public struct State: DeviceState {
        public static let schema = Schema("fdc82077", 1)
        static let bufferBytes = 36 * 512

        struct Drive: Codable, Equatable, Sendable {
            let isThere: Bool
            let type: FloppyFormat.DriveType
            var format: FloppyFormat?
            var isReadOnly = true
            /// Where the head is.
            var track = 0
            var changed = true

            init(isThere: Bool, store: (any BlockStore)? = nil) {
                self.isThere = isThere
                format = store.flatMap { FloppyFormat(imageSize: $0.size) }
                isReadOnly = store?.isReadOnly ?? true
                type = isThere ? format?.drive ?? .m1_44 : .none
            }
            mutating func insert(_ store: (any BlockStore)?) {
                format = store.flatMap { FloppyFormat(imageSize: $0.size) }
                isReadOnly = store?.isReadOnly ?? true
                changed = true
            }
            mutating func step(to target: Int) {
                track = min(max(target, 0), 84)
                if format != nil { changed = false }
            }
        }

        enum Phase: UInt8, Codable, Sendable {
            case command
            /// The medium fills the buffer; the guest takes it.
            case fill, give
            /// The guest fills the buffer; the medium takes it, and makes it durable.
            case take, store, flush
            case result
            var isOnMedium: Bool { self == .fill || self == .store || self == .flush }
            var isTransfer: Bool { self != .command && self != .result }
        }

        var drives: [Drive]
        /// Digital output (DOR): 0-1 drive, 2 not reset, 3 DMA gate, 4-7 motors.
        var output: UInt8 = 0x0C
        var tape: UInt8 = 0
        var rate: UInt8 = 2
        var phase = Phase.command
        var command: [UInt8] = []
        var result: [UInt8] = []
        var interrupt = false
        /// ST0 of seeks and resets that SENSE INTERRUPT STATUS has not fetched.
        var senses: [UInt8] = []
        var hasReset = false

        // Data of the command in progress.
        var data: [UInt8] = []
        var position = 0
        var place = Place()

        // SPECIFY, CONFIGURE, PERPENDICULAR, LOCK.
        var specify: [UInt8] = [0, 0]
        var configuration: [UInt8] = [0x20, 0]
        var perpendicular: UInt8 = 0
        var isLocked = false

        /// Sector address of the data command in progress (C, H, R, EOT).
        struct Place: Codable, Equatable, Sendable {
            var unit = 0
            var track = 0
            var head = 0
            var sector = 1
            var last = 1
            var multiTrack = false
            var isFormat = false
            /// VERIFY: reads without giving.
            var isVerify = false
            /// TC came while the medium worked.
            var ends = false
        }

        init(drives: [Drive]) { self.drives = drives }

        public mutating func reset(_ cause: ResetCause) {
            guard cause == .powerOn else { return }
            var fresh = State(drives: drives)
            for index in drives.indices {
                fresh.drives[index].track = 0
                fresh.drives[index].changed = true
            }
            self = fresh
        }

        var unit: Int { place.unit & 1 }
        var interruptLevel: Bool { interrupt && output & 8 != 0 }
        var usesDMA: Bool { specify[1] & 1 == 0 }
        var wantsDMA: Bool { usesDMA && output & 8 != 0 && (phase == .give || phase == .take) }

        // MARK: Registers

        /// MSR (§2.1.6).
        var mainStatus: UInt8 {
            guard output & 4 != 0 else { return 0 }
            switch phase {
            case .command: return 0x80 | (command.isEmpty ? 0 : 0x10)
            case .result: return 0xD0
            case .give: return usesDMA ? 0x10 : 0xF0
            case .take: return usesDMA ? 0x10 : 0xB0
            case .fill, .store, .flush: return usesDMA ? 0x10 : 0x30
            }
        }

        /// DIR (§2.1.8): disk change of the selected drive.
        var direction: UInt8 {
            let selected = Int(output & 3)
            guard selected < 2, drives[selected].isThere, output >> UInt8(4 + selected) & 1 != 0 else { return 0 }
            return drives[selected].changed ? 0x80 : 0
        }

        mutating func read(_ offset: UInt64) throws(BusFault) -> UInt8 {
            switch offset {
            case 2: return output
            case 3: return tape
            case 4: return mainStatus
            case 5: return readFIFO()
            default: throw .noRegister
            }
        }

        mutating func write(_ value: UInt8, _ offset: UInt64) {
            hasReset = false
            switch offset {
            case 2: writeOutput(value)
            case 3: tape = value & 3
            case 4: writeRateSelect(value)
            case 5: writeFIFO(value)
            default: break
            }
        }

        private mutating func writeOutput(_ value: UInt8) {
            let released = value & ~output & 4 != 0
            let held = output & ~value & 4 != 0
            output = value
            if held { softReset() }
            if released { resetEnded() }
        }

        private mutating func writeRateSelect(_ value: UInt8) {
            rate = value & 3
            if value & 0x80 != 0, output & 4 != 0 {
                softReset()
                resetEnded()
            }
        }

        /// What a reset by DOR or DSR clears (§7.2); LOCK keeps the FIFO's configuration.
        private mutating func softReset() {
            (phase, command, result, senses, interrupt) = (.command, [], [], [], false)
            (data, position, place) = ([], 0, Place())
            if !isLocked { configuration = [0x20, 0] }
            perpendicular &= 0x3C
        }

        /// After a reset polling tells of all four drives (§5.2.4, unless CONFIGURE stopped it).
        private mutating func resetEnded() {
            hasReset = true
            guard configuration[0] & 0x10 == 0 else { return }
            senses = [0xC0, 0xC1, 0xC2, 0xC3]
            interrupt = true
        }

        private mutating func readFIFO() -> UInt8 {
            if phase == .result {
                let byte = result.isEmpty ? 0 : result.removeFirst()
                interrupt = false
                if result.isEmpty { (phase, command) = (.command, []) }
                return byte
            }
            guard phase == .give, !usesDMA, position < data.count else { return 0 }
            let byte = data[position]
            given(1, terminalCount: false)
            return byte
        }

        private mutating func writeFIFO(_ value: UInt8) {
            guard output & 4 != 0 else { return }
            if phase == .take, !usesDMA { return taken([value], terminalCount: false) }
            guard phase == .command else { return }
            command.append(value)
            if command.count >= Self.length(command[0]) { execute() }
        }
    }
}

extension FDC82077.State {
    private enum CodingKeys: CodingKey {
        case drives, output, tape, rate, phase, command, result, interrupt, senses, hasReset, data, position, place
        case specify, configuration, perpendicular, isLocked
    }

    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        drives = try values.decode([Drive].self, forKey: .drives)
        output = try values.decode(UInt8.self, forKey: .output)
        tape = try values.decode(UInt8.self, forKey: .tape)
        rate = try values.decode(UInt8.self, forKey: .rate)
        phase = try values.decode(Phase.self, forKey: .phase)
        command = try values.decode([UInt8].self, forKey: .command)
        result = try values.decode([UInt8].self, forKey: .result)
        interrupt = try values.decode(Bool.self, forKey: .interrupt)
        senses = try values.decode([UInt8].self, forKey: .senses)
        hasReset = try values.decode(Bool.self, forKey: .hasReset)
        data = try values.decode([UInt8].self, forKey: .data)
        position = try values.decode(Int.self, forKey: .position)
        place = try values.decode(Place.self, forKey: .place)
        specify = try values.decode([UInt8].self, forKey: .specify)
        configuration = try values.decode([UInt8].self, forKey: .configuration)
        perpendicular = try values.decode(UInt8.self, forKey: .perpendicular)
        isLocked = try values.decode(Bool.self, forKey: .isLocked)
        guard drives.count == 2, specify.count == 2, configuration.count == 2, isSane else {
            throw DecodingError.dataCorruptedError(forKey: .drives, in: values, debugDescription: "not a controller")
        }
    }

    /// Whether a loaded state keeps the rules that the code relies on.
    private var isSane: Bool {
        let bounds = data.count <= Self.bufferBytes && position >= 0 && position <= data.count && command.count <= 9
        guard phase.isTransfer else { return bounds }
        guard let format = drives[unit].format, place.unit == unit, command.count >= 6 else { return false }
        let inside = (0..<format.tracks).contains(place.track) && (0..<format.heads).contains(place.head)
        return bounds && inside && place.sector >= 1 && place.sector <= place.last && place.last <= format.sectors
    }
}
