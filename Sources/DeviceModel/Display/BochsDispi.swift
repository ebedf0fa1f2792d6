// The Bochs VBE extension ("DISPI"): 16-bit registers that set a linear or banked mode directly.
// Source: Bochs VBE documentation (vbe_display_api.txt), interface ids B0C0 to B0C5.
// Modelled: all registers, 4 to 32 bits per pixel, capabilities, bank window, panning, 8-bit DAC. Not modelled: nothing.
// Quirks: turning the extension on sets the virtual size to the visible one; sizes that memory cannot hold are cut.

/// Registers of the Bochs VBE extension.
public struct BochsDispi: Codable, Equatable, Sendable {
    /// Index register values.
    public enum Index: UInt16, Codable, Sendable {
        case id = 0
        case width, height, bitsPerPixel, enable, bank, virtualWidth, virtualHeight, xOffset, yOffset, memory
    }
    static let newestID: UInt16 = 0xB0C5
    static let maximumWidth: UInt16 = 2560
    static let maximumHeight: UInt16 = 1600
    static let enabledBit: UInt16 = 0x01
    static let capabilitiesBit: UInt16 = 0x02
    static let wideDACBit: UInt16 = 0x20
    static let keepMemoryBit: UInt16 = 0x80

    public var index: UInt16 = 0
    public var id = Self.newestID
    public var width: UInt16 = 0
    public var height: UInt16 = 0
    public var bitsPerPixel: UInt16 = 8
    public var enable: UInt16 = 0
    public var bank: UInt16 = 0
    public var virtualWidth: UInt16 = 0
    public var xOffset: UInt16 = 0
    public var yOffset: UInt16 = 0

    public var isEnabled: Bool { enable & Self.enabledBit != 0 }
    /// The mode's pixels lie one after another, so the CPU's window is a plain bank.
    var isLinear: Bool { isEnabled && bitsPerPixel > 4 }
    var hasWideDAC: Bool { enable & Self.wideDACBit != 0 }
    var bytesPerPixel: Int { (Int(bitsPerPixel) + 7) / 8 }
    /// Bytes from one row to the next (of one plane, with four bits per pixel).
    var stride: Int { bitsPerPixel == 4 ? Int(virtualWidth) / 8 : Int(virtualWidth) * bytesPerPixel }
    /// Byte offset of the first visible pixel (within each plane, with four bits per pixel).
    var start: Int {
        let column = bitsPerPixel == 4 ? Int(xOffset) / 8 : Int(xOffset) * bytesPerPixel
        return Int(yOffset) * stride + column
    }
    /// Rows of the virtual width that fit into `memory` bytes.
    func virtualHeight(memory: Int) -> UInt16 {
        let bytes = bitsPerPixel == 4 ? memory / 4 : memory
        return stride == 0 ? 0 : UInt16(min(bytes / stride, 0xFFFF))
    }

    func read(_ register: UInt16, memory: Int) -> UInt16 {
        let showsLimits = enable & Self.capabilitiesBit != 0
        switch Index(rawValue: register) {
        case .id: return id
        case .width: return showsLimits ? Self.maximumWidth : width
        case .height: return showsLimits ? Self.maximumHeight : height
        case .bitsPerPixel: return showsLimits ? 32 : bitsPerPixel
        case .enable: return enable
        case .bank: return bank
        case .virtualWidth: return virtualWidth
        case .virtualHeight: return virtualHeight(memory: memory)
        case .xOffset: return xOffset
        case .yOffset: return yOffset
        case .memory: return UInt16(truncatingIfNeeded: memory >> 16)
        case nil: return 0
        }
    }

    /// Takes a write; answers whether the mode was turned on and its memory is to be cleared.
    mutating func write(_ value: UInt16, _ register: UInt16, memory: Int) -> Bool {
        switch Index(rawValue: register) {
        case .id: if value >= 0xB0C0, value <= Self.newestID { id = value }
        case .width: if !isEnabled { width = min(value, Self.maximumWidth) }
        case .height: if !isEnabled { height = min(value, Self.maximumHeight) }
        case .bitsPerPixel:
            let depth = value == 0 ? 8 : value
            if !isEnabled, [4, 8, 15, 16, 24, 32].contains(depth) { bitsPerPixel = depth }
        case .enable: return setEnable(value, memory: memory)
        case .bank: bank = value
        case .virtualWidth: setVirtualWidth(value, memory: memory)
        case .xOffset: xOffset = value
        case .yOffset: yOffset = value
        case .virtualHeight, .memory, nil: break
        }
        return false
    }

    private mutating func setEnable(_ value: UInt16, memory: Int) -> Bool {
        let wasEnabled = isEnabled
        enable = value & 0xFF
        guard isEnabled, !wasEnabled else { return false }
        width = max(width & ~7, 8)
        virtualWidth = width
        height = max(height, 1)
        height = min(height, max(virtualHeight(memory: memory), 1))
        (xOffset, yOffset, bank) = (0, 0, 0)
        return value & Self.keepMemoryBit == 0
    }

    /// At least the visible width, at most what leaves room for the visible rows.
    private mutating func setVirtualWidth(_ value: UInt16, memory: Int) {
        guard isEnabled else { return virtualWidth = value }
        let before = virtualWidth
        virtualWidth = max(value & ~7, width)
        if virtualHeight(memory: memory) < height { virtualWidth = before }
    }
}
