// The commands of the floppy controller.
// Source: Intel 82077AA datasheet 290166-007, §5 (command set and descriptions), §6 (ST0-ST3).
// Modelled: READ, WRITE, VERIFY, READ ID, READ TRACK, FORMAT, SEEK, RECALIBRATE, status, set-up commands.
// Quirk: no FORMAT changes the geometry; each sector the guest formats is filled where it belongs.
internal import Images

extension FDC82077.State {
    /// Bytes of a command, its first one included.
    static func length(_ code: UInt8) -> Int {
        switch code & 0x1F {
        case 0x02, 0x05, 0x06, 0x09, 0x0C, 0x16: return 9
        case 0x0D: return 6
        case 0x13 where code & 0xE0 == 0: return 4
        case 0x03, 0x0F: return 3
        case 0x04, 0x07, 0x0A, 0x12: return 2
        default: return 1
        }
    }

    mutating func execute() {
        switch command[0] & 0x1F {
        case 0x06, 0x0C, 0x02: startData(toGuest: true)
        case 0x16: startData(toGuest: true, verify: true)
        case 0x05, 0x09: startData(toGuest: false)
        case 0x0D: startFormat()
        case 0x0A: readID()
        case 0x07: seek(to: 0)
        case 0x0F: startSeek()
        case 0x08: senseInterrupt()
        case 0x04: senseDrive()
        case 0x03: acknowledge { $0.specify = [$0.command[1], $0.command[2]] }
        case 0x13 where command[0] & 0xE0 == 0:
            acknowledge { $0.configuration = [$0.command[2], $0.command[3]] }
        case 0x12: acknowledge { $0.perpendicular = $0.command[1] }
        case 0x0E: dumpRegisters()
        case 0x10: answer([0x90])
        case 0x14:
            isLocked = command[0] & 0x80 != 0
            answer([isLocked ? 0x10 : 0])
        default: answer([0x80])
        }
    }

    /// A command without result bytes.
    private mutating func acknowledge(_ change: (inout Self) -> Void) {
        change(&self)
        (phase, command) = (.command, [])
    }

    private mutating func answer(_ bytes: [UInt8]) { (phase, result) = (.result, bytes) }

    private var selected: Int { Int(command[1] & 3) }
    private var head: Int { Int(command[1] >> 2 & 1) }

    // MARK: Seeks and status

    private mutating func startSeek() {
        let unit = selected
        guard command[0] & 0x80 != 0 else { return seek(to: Int(command[2])) }
        // Relative seek (§5.2.11): direction in bit 6.
        let track = unit < 2 ? drives[unit].track : 0
        seek(to: command[0] & 0x40 != 0 ? track + Int(command[2]) : track - Int(command[2]))
    }

    private mutating func seek(to track: Int) {
        let unit = selected
        let head: UInt8 = command[0] & 0x1F == 0x0F ? command[1] & 4 : 0
        if unit < 2, drives[unit].isThere {
            drives[unit].step(to: track)
            senses.append(0x20 | head | UInt8(unit))
        } else {
            // Track 0 is never found: equipment check (§6.1).
            senses.append(command[0] & 0x1F == 0x07 ? 0x70 | UInt8(unit) : 0x20 | head | UInt8(unit))
        }
        if senses.count > 4 { senses.removeFirst() }
        (phase, command, interrupt) = (.command, [], true)
    }

    private mutating func senseInterrupt() {
        interrupt = false
        guard !senses.isEmpty else { return answer([0x80]) }
        let status = senses.removeFirst()
        let unit = Int(status & 3)
        answer([status, unit < 2 ? UInt8(drives[unit].track) : 0])
    }

    /// SENSE DRIVE STATUS: ST3 (§6.4).
    private mutating func senseDrive() {
        let unit = selected
        var status = 0x28 | command[1] & 7
        if unit < 2, drives[unit].isThere {
            if drives[unit].track == 0 { status |= 0x10 }
            if drives[unit].format != nil, drives[unit].isReadOnly { status |= 0x40 }
        }
        answer([status])
    }

    private mutating func dumpRegisters() {
        let tracks = drives.map { UInt8($0.track) }
        let lock: UInt8 = isLocked ? 0x80 : 0
        answer([
            tracks[0], tracks[1], 0, 0, specify[0], specify[1], UInt8(truncatingIfNeeded: place.last),
            lock | perpendicular & 0x3F, configuration[0], configuration[1],
        ])
    }

    // MARK: Data commands

    /// The medium under the selected head, if it can be read at the present rate.
    private func readable() -> FloppyFormat? {
        guard selected < 2, let format = drives[selected].format, format.rate == rate, command[0] & 0x40 != 0 else {
            return nil
        }
        return format
    }

    private mutating func readID() {
        place = Place()
        place.unit = selected
        place.head = head
        guard let format = readable(), head < format.heads, drives[selected].track < format.tracks else {
            return endTransfer(st0: 0x40, st1: 0x01)
        }
        place.track = drives[selected].track
        endTransfer(st0: 0)
    }

    private mutating func startData(toGuest: Bool, verify: Bool = false) {
        place = Place()
        (place.unit, place.head, place.track) = (selected, head, Int(command[2]))
        (place.sector, place.last) = (Int(command[4]), Int(command[6]))
        place.multiTrack = command[0] & 0x80 != 0
        place.isVerify = verify
        if command[0] & 0x1F == 0x02 { place.sector = 1 }
        guard let format = readable() else { return endTransfer(st0: 0x40, st1: 0x01) }
        guard place.track == drives[selected].track else { return endTransfer(st0: 0x40, st1: 0x04, st2: 0x10) }
        place.last = min(place.last, format.sectors)
        let isThere = Int(command[3]) == head && command[5] == 2 && place.sector >= 1 && place.sector <= place.last
        guard isThere, head < format.heads, place.track < format.tracks else {
            return endTransfer(st0: 0x40, st1: 0x04)
        }
        guard toGuest || !drives[selected].isReadOnly else { return endTransfer(st0: 0x40, st1: 0x02) }
        (data, position) = ([], 0)
        phase = toGuest ? .fill : .take
        if !usesDMA, !toGuest { interrupt = true }
    }

    private mutating func startFormat() {
        place = Place()
        (place.unit, place.head, place.isFormat) = (selected, head, true)
        guard let format = readable(), head < format.heads, drives[selected].track < format.tracks else {
            return endTransfer(st0: 0x40, st1: 0x01)
        }
        guard !drives[selected].isReadOnly else { return endTransfer(st0: 0x40, st1: 0x02) }
        guard command[2] == 2, command[3] > 0, Int(command[3]) <= format.sectors else {
            return endTransfer(st0: 0x40, st1: 0x04)
        }
        place.track = drives[selected].track
        place.last = Int(command[3])
        (data, position, phase) = ([], 0, .take)
        if !usesDMA { interrupt = true }
    }

    /// Where the present run begins on the medium.
    var runOffset: UInt64 {
        guard let format = drives[unit].format else { return 0 }
        let sector = (place.track * format.heads + place.head) * format.sectors + place.sector - 1
        return UInt64(max(sector, 0)) * 512
    }

    /// Bytes from the present sector to the last one under this head.
    var runBytes: Int { max(0, place.last - place.sector + 1) * 512 }

    /// What the guest has not taken yet, and what it has not given yet.
    var pending: ArraySlice<UInt8> { data[position...] }
    var missing: Int { (place.isFormat ? place.last * 4 : runBytes) - data.count }

    mutating func filled(_ bytes: [UInt8]) {
        (data, position, phase) = (bytes, 0, .give)
        if place.isVerify { return given(bytes.count, terminalCount: false) }
        if !usesDMA { interrupt = true }
    }

    mutating func given(_ count: Int, terminalCount: Bool) {
        position = min(position + count, data.count)
        if terminalCount { return endRun(sectors: (position + 511) / 512, terminalCount: true) }
        if position == data.count { endRun(sectors: data.count / 512, terminalCount: false) }
    }

    mutating func taken(_ bytes: [UInt8], terminalCount: Bool) {
        data += bytes.prefix(missing)
        place.ends = terminalCount
        guard terminalCount || missing <= 0 else { return }
        if place.isFormat { return fillTrack() }
        // The rest of a sector that TC cuts is written as zeroes (§5.1.3).
        let rest = data.count % 512
        if rest != 0 { data += [UInt8](repeating: 0, count: 512 - rest) }
        phase = .store
    }

    /// FORMAT TRACK has its sector addresses.
    private mutating func fillTrack() {
        data = [UInt8](repeating: command[5], count: place.last * 512)
        place.sector = 1
        phase = .store
    }

    mutating func stored() {
        let sectors = data.count / 512
        if place.isFormat {
            place.sector = place.last
            (place.ends, phase) = (true, .flush)
            return
        }
        endRun(sectors: sectors, terminalCount: place.ends)
    }

    mutating func flushed() { endTransfer(st0: 0, st1: place.ends ? 0 : 0x80) }

    mutating func mediumFailed() { endTransfer(st0: 0x40, st1: 0x20, st2: 0x20) }

    /// A run of sectors is through: another head's, or the end.
    private mutating func endRun(sectors: Int, terminalCount: Bool) {
        let isWrite = phase == .store
        place.sector += sectors
        let atEnd = place.sector > place.last
        (data, position) = ([], 0)
        if atEnd, place.multiTrack, place.head == 0, drives[unit].format?.heads == 2 {
            (place.head, place.sector) = (1, 1)
            if !terminalCount {
                phase = isWrite ? .take : .fill
                return
            }
        } else if atEnd {
            // The result names the sector behind the last one (§5.1.1, table 5-6).
            if place.multiTrack { place.head = 0 }
            place.sector = 1
            place.ends = terminalCount || place.isVerify
            if isWrite {
                phase = .flush
                return
            }
            place.track += 1
            return endTransfer(st0: 0, st1: place.ends ? 0 : 0x80)
        }
        place.ends = terminalCount
        if isWrite { phase = .flush } else { endTransfer(st0: 0) }
    }

    /// Result phase of a data command: ST0-ST2 and C, H, R, N.
    mutating func endTransfer(st0: UInt8, st1: UInt8 = 0, st2: UInt8 = 0) {
        let bits = st0 | (st1 != 0 ? 0x40 : 0) | UInt8(place.head & 1) << 2 | UInt8(place.unit & 3)
        (data, position) = ([], 0)
        (phase, interrupt) = (.result, true)
        result = [
            bits, st1, st2, UInt8(truncatingIfNeeded: place.track), UInt8(place.head & 1),
            UInt8(truncatingIfNeeded: place.sector), 2,
        ]
    }
}
