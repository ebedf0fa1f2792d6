// One 8259A programmable interrupt controller: requests, priorities, end of interrupt.
// Source: Intel 8259A datasheet (231468-003), "Programming the 8259A"; ELCR: Intel 82371AB §4.2.5.
// Modelled: ICW1-4, OCW1-3, all EOI forms, rotation, special mask, poll. Not modelled: 8080 mode, buffered mode.
// Quirks: an edge stays latched when its input falls early, so that a short pulse is never lost (as in every PC emulation).

/// State and logic of one of the two chips.
public struct PIC8259: Codable, Equatable, Sendable {
    /// Levels of IR0-7 as they are driven.
    public var levels: UInt8 = 0
    /// Edges seen and not yet acknowledged.
    public var edges: UInt8 = 0
    /// ISR.
    public var inService: UInt8 = 0
    /// IMR.
    public var mask: UInt8 = 0
    /// ELCR: inputs that are level-triggered.
    public var levelTriggered: UInt8 = 0
    /// ICW2, bits 7:3.
    public var vectorBase: UInt8 = 0
    /// The input with the lowest priority; 7 unless rotated.
    public var lowest: UInt8 = 7
    public var autoEOI = false
    public var rotateOnAutoEOI = false
    public var specialMask = false
    public var specialFullyNested = false
    /// OCW3 RIS: reads of the command port give ISR instead of IRR.
    public var readsInService = false
    public var polls = false
    /// Which initialisation word the data port expects.
    public var expects = Word.none
    public var needsICW4 = false
    public var single = false
    /// Inputs wired to another 8259, which are taken as levels.
    public let cascade: UInt8

    public enum Word: UInt8, Codable, Sendable { case none, icw2, icw3, icw4 }

    public init(cascade: UInt8) { self.cascade = cascade }

    /// IRR: latched edges and present levels.
    public var request: UInt8 {
        let byLevel = levelTriggered | cascade
        return edges & ~byLevel | levels & byLevel
    }

    public mutating func input(_ line: Int, _ high: Bool) {
        let bit = UInt8(1) << UInt8(line & 7)
        if high, levels & bit == 0 { edges |= bit }
        levels = high ? levels | bit : levels & ~bit
    }

    /// The request that the chip signals now: unmasked, and above what is in service.
    public var pending: Int? {
        guard let candidate = highest(request & ~mask) else { return nil }
        var serving = inService
        if specialMask { serving &= ~mask }
        if specialFullyNested { serving &= ~cascade }
        guard let current = highest(serving) else { return candidate }
        return rank(candidate) < rank(current) ? candidate : nil
    }

    /// INTA for input `line`: it is in service now, unless automatic EOI ends it at once.
    public mutating func acknowledge(_ line: Int) {
        let bit = UInt8(1) << UInt8(line & 7)
        edges &= ~bit
        if autoEOI {
            if rotateOnAutoEOI { lowest = UInt8(line & 7) }
        } else {
            inService |= bit
        }
    }

    public mutating func read(data: Bool) -> UInt8 {
        if polls {
            polls = false
            guard let line = pending else { return 0x07 }
            acknowledge(line)
            return 0x80 | UInt8(line)
        }
        if data { return mask }
        return readsInService ? inService : request
    }

    public mutating func write(_ byte: UInt8, data: Bool) {
        if data {
            writeData(byte)
        } else if byte & 0x10 != 0 {
            initialise(byte)
        } else if byte & 0x08 != 0 {
            writeOCW3(byte)
        } else {
            writeOCW2(byte)
        }
    }

    /// ICW1: what it clears is listed in the datasheet under "Initialization Command Words 1 and 2".
    private mutating func initialise(_ byte: UInt8) {
        edges = 0
        (mask, inService, lowest) = (0, 0, 7)
        (specialMask, readsInService, polls) = (false, false, false)
        (autoEOI, rotateOnAutoEOI, specialFullyNested) = (false, false, false)
        needsICW4 = byte & 0x01 != 0
        single = byte & 0x02 != 0
        expects = .icw2
    }

    private mutating func writeData(_ byte: UInt8) {
        switch expects {
        case .none: mask = byte
        case .icw2:
            vectorBase = byte & 0xF8
            expects = single ? (needsICW4 ? .icw4 : .none) : .icw3
        case .icw3: expects = needsICW4 ? .icw4 : .none
        case .icw4:
            autoEOI = byte & 0x02 != 0
            specialFullyNested = byte & 0x10 != 0
            expects = .none
        }
    }

    private mutating func writeOCW3(_ byte: UInt8) {
        if byte & 0x04 != 0 { polls = true }
        if byte & 0x02 != 0 { readsInService = byte & 0x01 != 0 }
        if byte & 0x40 != 0 { specialMask = byte & 0x20 != 0 }
    }

    /// OCW2: R, SL, EOI in bits 7:5.
    private mutating func writeOCW2(_ byte: UInt8) {
        let line = byte & 7
        switch byte >> 5 {
        case 0b001: endHighest(rotate: false)
        case 0b101: endHighest(rotate: true)
        case 0b011: inService &= ~(1 << line)
        case 0b111:
            inService &= ~(1 << line)
            lowest = line
        case 0b110: lowest = line
        case 0b100: rotateOnAutoEOI = true
        case 0b000: rotateOnAutoEOI = false
        default: break  // 010: no operation
        }
    }

    /// Non-specific EOI. In special mask mode masked inputs are not touched (datasheet, "Special Mask Mode").
    private mutating func endHighest(rotate: Bool) {
        guard let line = highest(specialMask ? inService & ~mask : inService) else { return }
        inService &= ~(1 << UInt8(line))
        if rotate { lowest = UInt8(line) }
    }

    /// 0 for the input with the highest priority now, 7 for the lowest.
    private func rank(_ line: Int) -> Int { (line &- Int(lowest) &- 1) & 7 }

    private func highest(_ bits: UInt8) -> Int? {
        guard bits != 0 else { return nil }
        let first = Int(lowest &+ 1) & 7
        let rotated = bits >> UInt8(first) | bits << UInt8((8 - first) & 7)
        return (first + rotated.trailingZeroBitCount) & 7
    }
}
