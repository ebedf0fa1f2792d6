// What travels between interrupt controllers: the APIC bus of a PC.
// Source: Intel SDM volume 3, §11.6 (ICR), §11.11 (MSI); 82093AA datasheet §3.2.4.

/// Delivery modes, as the ICR, the LVT and a redirection entry encode them.
public enum DeliveryMode: UInt8, Codable, Sendable {
    case fixed = 0, lowestPriority = 1, systemManagement = 2, nonMaskable = 4, initialise = 5, startup = 6, external = 7
}

/// One interrupt on its way to one or several local APICs.
public struct InterruptMessage: Equatable, Sendable {
    public enum Destination: Equatable, Sendable {
        /// An APIC id; 0xFF (0xFFFF_FFFF from an x2APIC) is everybody.
        case physical(UInt32)
        /// Matched against LDR and DFR.
        case logical(UInt32)
        case everybody
        case everybodyElse
        case sender
    }
    public var destination: Destination
    public var mode: DeliveryMode
    public var vector: UInt8
    public var isLevel: Bool
    public init(_ mode: DeliveryMode, vector: UInt8, to destination: Destination, isLevel: Bool = false) {
        (self.mode, self.vector, self.destination, self.isLevel) = (mode, vector, destination, isLevel)
    }
}

/// Who carries messages from a controller to the local APICs of the machine.
public protocol InterruptBus: AnyObject {
    /// Hands `message` over; `sender` is the index of the local APIC it came from.
    func deliver(_ message: InterruptMessage, from sender: Int?)
    /// A local APIC ended a level-triggered interrupt.
    func endOfInterrupt(vector: UInt8)
}
