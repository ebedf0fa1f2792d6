// The VGA's registers: what the ports 0x3B0-0x3DF read and write.
// Source: IBM Personal System/2 Display Adapter 8514/A and VGA technical reference, "VGA function", register chapters.
// Modelled: every documented register with its implemented bits. Not modelled: sense switches, vertical interrupt.
// Quirks: CRTC registers 0-7 are locked by bit 7 of register 0x11, except line compare's bit 4 of register 7.

public import Machine

/// A fixed number of byte registers; what lies outside reads as zero.
public struct RegisterFile: Codable, Equatable, Sendable {
    private var bytes: [UInt8]
    init(_ count: Int) { bytes = [UInt8](repeating: 0, count: count) }
    init(_ bytes: [UInt8]) { self.bytes = bytes }
    var count: Int { bytes.count }

    @inline(__always) public subscript(_ index: Int) -> UInt8 {
        get { index >= 0 && index < bytes.count ? bytes[index] : 0 }
        set { if index >= 0, index < bytes.count { bytes[index] = newValue } }
    }
}

extension VGA {
    /// All a guest can tell apart about the VGA, but for video memory.
    public struct State: DeviceState {
        public static let schema = Schema("vga", 1)
        public var miscellaneous: UInt8 = 0
        public var featureControl: UInt8 = 0
        public var subsystemEnable: UInt8 = 1
        public var sequencerIndex: UInt8 = 0
        public var sequencer = RegisterFile(5)
        public var graphicsIndex: UInt8 = 0
        public var graphics = RegisterFile(9)
        public var crtcIndex: UInt8 = 0
        public var crtc = RegisterFile(25)
        /// Index, and bit 5: the display shows the palette (PAS).
        public var attributeIndex: UInt8 = 0
        /// The next write to 0x3C0 is data.
        public var attributeTakesData = false
        public var attributes = RegisterFile(21)
        public var dac = DAC()
        /// One byte of each plane, from the last read of video memory.
        public var latches: UInt32 = 0
        public var dispi = BochsDispi()
        /// Byte order register of the memory-mapped window.
        public var isBigEndian = false

        public init() {}

        /// A CPU reset leaves the card alone.
        public mutating func reset(_ cause: ResetCause) { if cause == .powerOn { self = State() } }
    }

    /// The DAC: 256 colours of three bytes, and the two auto-incrementing indices.
    public struct DAC: Codable, Equatable, Sendable {
        public var mask: UInt8 = 0xFF
        public var readIndex: UInt8 = 0
        public var writeIndex: UInt8 = 0
        /// Which of red, green, blue comes next.
        public var component: UInt8 = 0
        public var isReading = false
        public var palette = RegisterFile(768)

        mutating func read(wide: Bool) -> UInt8 {
            let value = palette[Int(readIndex) * 3 + Int(component)]
            if step() { readIndex &+= 1 }
            return wide ? value : value & 0x3F
        }

        mutating func write(_ value: UInt8, wide: Bool) {
            palette[Int(writeIndex) * 3 + Int(component)] = wide ? value : value & 0x3F
            if step() { writeIndex &+= 1 }
        }

        private mutating func step() -> Bool {
            component = component >= 2 ? 0 : component + 1
            return component == 0
        }
    }

    static let sequencerMasks: [UInt8] = [0x03, 0x3D, 0x0F, 0x3F, 0x0E]
    static let graphicsMasks: [UInt8] = [0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF]
    /// Palette entries have six bits; then mode, overscan, plane enable, panning, colour select.
    static let attributeMasks = [UInt8](repeating: 0x3F, count: 16) + [0xEF, 0xFF, 0x3F, 0x0F, 0x0F]
}

extension VGA.State {
    /// Whether `port` is on the side (mono 0x3Bx, colour 0x3Dx) that is switched off.
    private func isElsewhere(_ port: UInt64) -> Bool {
        let isColour = miscellaneous & 1 != 0
        return isColour ? port < 0x3C0 : port >= 0x3D0
    }

    /// Reads a VGA port; `retrace` is what input status 1 shows of the beam.
    mutating func readPort(_ port: UInt64, retrace: UInt8) throws(BusFault) -> UInt8 {
        if isElsewhere(port) { throw .noRegister }
        switch port {
        case 0x3C0: return attributeTakesData ? attributes[Int(attributeIndex & 0x1F)] : attributeIndex
        case 0x3C1: return attributes[Int(attributeIndex & 0x1F)]
        case 0x3C2: return 0x10  // input status 0: a colour monitor's sense level
        case 0x3C3: return subsystemEnable
        case 0x3C4: return sequencerIndex
        case 0x3C5: return sequencer[Int(sequencerIndex)]
        case 0x3C6: return dac.mask
        case 0x3C7: return dac.isReading ? 3 : 0
        case 0x3C8: return dac.writeIndex
        case 0x3C9: return dac.read(wide: dispi.hasWideDAC)
        case 0x3CA: return featureControl
        case 0x3CC: return miscellaneous
        case 0x3CE: return graphicsIndex
        case 0x3CF: return graphics[Int(graphicsIndex)]
        case 0x3B4, 0x3D4: return crtcIndex
        case 0x3B5, 0x3D5: return crtc[Int(crtcIndex)]
        case 0x3BA, 0x3DA:
            attributeTakesData = false
            return retrace
        default: throw .noRegister
        }
    }

    mutating func writePort(_ value: UInt8, _ port: UInt64) throws(BusFault) {
        if isElsewhere(port) { throw .noRegister }
        switch port {
        case 0x3C0: writeAttribute(value)
        case 0x3C2: miscellaneous = value & 0xEF
        case 0x3C3: subsystemEnable = value & 1
        case 0x3C4: sequencerIndex = value & 7
        case 0x3C5: writeMasked(value, Int(sequencerIndex), &sequencer, VGA.sequencerMasks)
        case 0x3C6: dac.mask = value
        case 0x3C7: (dac.readIndex, dac.component, dac.isReading) = (value, 0, true)
        case 0x3C8: (dac.writeIndex, dac.component, dac.isReading) = (value, 0, false)
        case 0x3C9: dac.write(value, wide: dispi.hasWideDAC)
        case 0x3CE: graphicsIndex = value & 0x0F
        case 0x3CF: writeMasked(value, Int(graphicsIndex), &graphics, VGA.graphicsMasks)
        case 0x3B4, 0x3D4: crtcIndex = value & 0x3F
        case 0x3B5, 0x3D5: writeCRTC(value)
        case 0x3BA, 0x3DA: featureControl = value & 0x0B
        default: throw .noRegister
        }
    }

    private func writeMasked(_ value: UInt8, _ index: Int, _ file: inout RegisterFile, _ masks: [UInt8]) {
        if index < masks.count { file[index] = value & masks[index] }
    }

    /// Index and data by turns through one port; input status 1 puts the turn back.
    private mutating func writeAttribute(_ value: UInt8) {
        if attributeTakesData {
            writeMasked(value, Int(attributeIndex & 0x1F), &attributes, VGA.attributeMasks)
        } else {
            attributeIndex = value & 0x3F
        }
        attributeTakesData.toggle()
    }

    private mutating func writeCRTC(_ value: UInt8) {
        let index = Int(crtcIndex)
        let isLocked = crtc[0x11] & 0x80 != 0
        if isLocked, index == 7 {
            crtc[7] = crtc[7] & ~0x10 | value & 0x10
        } else if !(isLocked && index < 7) {
            crtc[index] = value
        }
    }
}
