// Registers of the 82540EM by offset, and which of their bits can be written.
// Source: Intel 8254x Software Developer's Manual (317453-006), §13.
// Modelled: what drivers of Linux, iPXE and Windows use. Not modelled: wake-up, flash, flow control (kept, no effect).
// Quirks: a register that is not here reads as zero, as on the card.

import Registers

enum E1000Register {
    static let control = 0x0000, status = 0x0008, eeprom = 0x0010, eepromRead = 0x0014, extended = 0x0018
    static let phy = 0x0020, cause = 0x00C0, throttle = 0x00C4, causeSet = 0x00C8, mask = 0x00D0, maskClear = 0x00D8
    static let receiveControl = 0x0100, transmitControl = 0x0400, packetBuffer = 0x1000
    static let receiveBase = 0x2800, receiveBaseHigh = 0x2804, receiveLength = 0x2808
    static let receiveHead = 0x2810, receiveTail = 0x2818
    static let transmitBase = 0x3800, transmitBaseHigh = 0x3804, transmitLength = 0x3808
    static let transmitHead = 0x3810, transmitTail = 0x3818
    static let statistics = 0x4000...0x40FC
    static let receiveChecksum = 0x5000
    static let groups = 0x5200...0x53FC
    static let addresses = 0x5400...0x547C
    static let tags = 0x5600...0x57FC
    /// Statistics that are counted.
    enum Count {
        static let missed = 0x4010, tooLong = 0x40AC
    }

    /// Statistics of one direction: good packets, all, those to everybody and to groups; bytes of either.
    struct Traffic {
        let good: Int, all: Int, broadcasts: Int, groups: Int, goodBytes: Int, allBytes: Int
        static let received = Traffic(
            good: 0x4074, all: 0x40D0, broadcasts: 0x4078, groups: 0x407C, goodBytes: 0x4088, allBytes: 0x40C0)
        static let sent = Traffic(
            good: 0x4080, all: 0x40D4, broadcasts: 0x40F4, groups: 0x40F0, goodBytes: 0x4090, allBytes: 0x40C8)
    }

    /// Bits that a plain write changes; nil: the register has a behaviour of its own, or is none.
    static func writable(_ offset: Int) -> UInt32? {
        switch offset {
        // CTRL_EXT, FCAL, FCAH, FCT, VET, FCTTV, TXCW, TIPG, AIT, LEDCTL, PBA, FCRTL, FCRTH.
        case 0x0018, 0x0028, 0x0170, 0x0178, 0x0410, 0x0458, 0x0E00, 0x1000, 0x2160, 0x2168: .max
        case 0x002C, 0x0030, 0x0038, throttle: 0xFFFF
        case receiveBase, transmitBase: ~0xF
        case receiveBaseHigh, transmitBaseHigh: .max
        case receiveLength, transmitLength: 0xF_FF80
        case receiveHead, transmitHead, receiveTail, transmitTail: 0xFFFF
        // RDTR, RXDCTL, RADV, RSRPD, TIDV, TXDCTL, TADV, TSPMT.
        case 0x2820, 0x282C, 0x2C00, 0x3820, 0x382C: 0xFFFF
        case 0x2828, 0x3828, 0x3830: .max
        case receiveControl, transmitControl: 0x0FFF_FFFF
        case receiveChecksum: 0x7FF
        case groups, addresses, tags: .max
        // WUC, WUFC, IPAV, MANC.
        case 0x5800, 0x5808, 0x5838, 0x5820: .max
        default: nil
        }
    }
}

/// ICR, IMS and their like (§13.4.17).
struct E1000Causes: Register {
    var rawValue: UInt32
    init(rawValue: UInt32) { self.rawValue = rawValue }
    static let transmitWritten = bit(0)
    static let transmitEmpty = bit(1)
    static let linkChange = bit(2)
    static let receiveLow = bit(4)
    static let receiveOverrun = bit(6)
    static let received = bit(7)
    static let phyDone = bit(9)
    static let all = E1000Causes(rawValue: 0x1_FFFF)
}

/// RCTL (§13.4.22).
struct E1000ReceiveControl: Register {
    var rawValue: UInt32
    init(rawValue: UInt32) { self.rawValue = rawValue }
    static let enable = bit(1)
    static let allStations = bit(3)
    static let allGroups = bit(4)
    static let longPackets = bit(5)
    static let broadcasts = bit(15)
    static let tagFilter = bit(18)
    static let largeSizes = bit(25)
    static let stripsCheck = bit(26)

    /// Bytes of a buffer.
    var bufferBytes: Int {
        let sizes = contains(.largeSizes) ? [2048, 16384, 8192, 4096] : [2048, 1024, 512, 256]
        return sizes[Int(self[bits: 16...17])]
    }
    /// Free descriptors at which the guest is warned, as a share of all: 1/2, 1/4, 1/8.
    var warningShift: Int { Int(self[bits: 8...9]) + 1 }
    /// Which bits of an address choose from the table of groups.
    var groupShift: Int { [4, 3, 2, 0][Int(self[bits: 12...13])] }
}
