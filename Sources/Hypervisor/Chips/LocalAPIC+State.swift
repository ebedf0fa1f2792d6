public import Machine
public import Registers

extension LocalAPIC {
    /// A local vector table entry (SDM vol. 3 §11.5.1, figure 11-8).
    public struct LocalVector: Register {
        public var rawValue: UInt32
        public init(rawValue: UInt32) { self.rawValue = rawValue }
        public static let remoteIRR = bit(14)
        public static let level = bit(15)
        public static let masked = bit(16)
        public var vector: UInt8 { UInt8(truncatingIfNeeded: rawValue) }
        public var mode: DeliveryMode? { DeliveryMode(rawValue: UInt8(self[bits: 8...10])) }
        /// Timer mode: 0 one-shot, 1 periodic, 2 TSC deadline.
        public var timerMode: UInt32 { self[bits: 17...18] }
    }

    /// The entries in register order, from 0x320 on.
    public enum Source: Int, Sendable, CaseIterable {
        case timer = 0, thermal, performance, lint0, lint1, error
        /// Bits that a guest may change (figure 11-8).
        var writable: LocalVector {
            switch self {
            case .timer: return LocalVector(rawValue: 0x0007_00FF)
            case .thermal, .performance: return LocalVector(rawValue: 0x0001_07FF)
            case .lint0, .lint1: return LocalVector(rawValue: 0x0001_A7FF)
            case .error: return LocalVector(rawValue: 0x0001_00FF)
            }
        }
    }

    /// The local vector table; masked until programmed.
    public struct LocalVectors: Codable, Equatable, Sendable {
        private var timer = LocalVector.masked
        private var thermal = LocalVector.masked
        private var performance = LocalVector.masked
        private var lint0 = LocalVector.masked
        private var lint1 = LocalVector.masked
        private var error = LocalVector.masked
        public init() {}
        public subscript(source: Source) -> LocalVector {
            get {
                switch source {
                case .timer: return timer
                case .thermal: return thermal
                case .performance: return performance
                case .lint0: return lint0
                case .lint1: return lint1
                case .error: return error
                }
            }
            set {
                switch source {
                case .timer: timer = newValue
                case .thermal: thermal = newValue
                case .performance: performance = newValue
                case .lint0: lint0 = newValue
                case .lint1: lint1 = newValue
                case .error: error = newValue
                }
            }
        }
    }

    public struct State: DeviceState {
        public static let schema = Schema("local-apic", 1)
        // Fixed when the machine is built.
        public let initialID: UInt32
        public let isBootProcessor: Bool
        /// Hertz of the time stamp counter.
        public let tsc: UInt64

        public var now = Instant.zero
        /// IA32_APIC_BASE.
        public var base: UInt64
        /// xAPIC id, bits 31:24 of its register.
        public var id: UInt8
        public var taskPriority: UInt8 = 0
        public var logicalDestination: UInt32 = 0
        public var destinationFormat: UInt32 = .max
        public var spurious: UInt32 = 0xFF
        public var inService = VectorSet()
        public var triggerMode = VectorSet()
        public var requested = VectorSet()
        public var errorStatus: UInt32 = 0
        public var errors: UInt32 = 0
        public var command: UInt64 = 0
        public var vectors = LocalVectors()
        public var initialCount: UInt32 = 0
        public var divide: UInt32 = 0
        /// When the count began; nil while the timer is stopped.
        public var timerStart: Instant?
        /// IA32_TSC_DEADLINE; 0 is disarmed.
        public var tscDeadline: UInt64 = 0

        public init(id: UInt32, isBootProcessor: Bool, tsc: UInt64) {
            (initialID, self.isBootProcessor, self.tsc) = (id, isBootProcessor, tsc)
            self.id = UInt8(truncatingIfNeeded: id)
            base = 0xFEE0_0800 | (isBootProcessor ? 0x100 : 0)
        }

        /// Power-on; INIT (`.cpu`) keeps the id and the base (§11.4.7.3).
        public mutating func reset(_ cause: ResetCause) {
            let old = self
            self = State(id: initialID, isBootProcessor: isBootProcessor, tsc: tsc)
            if cause == .cpu { (now, id, base) = (old.now, old.id, old.base) }
        }

        public var isEnabled: Bool { base & 0x800 != 0 }
        public var isX2: Bool { base & 0xC00 == 0xC00 }
        /// Bit 8 of SVR.
        public var isSoftwareEnabled: Bool { isEnabled && spurious & 0x100 != 0 }
        public var currentID: UInt32 { isX2 ? initialID : UInt32(id) }

        public subscript(source: Source) -> LocalVector {
            get { vectors[source] }
            set { vectors[source] = newValue }
        }

        /// PPR (§11.8.3.1).
        public var processorPriority: UInt8 {
            let serving = (inService.highest ?? 0) & 0xF0
            return taskPriority & 0xF0 >= serving ? taskPriority : serving
        }

        public var pending: UInt8? {
            guard isSoftwareEnabled, let vector = requested.highest else { return nil }
            return vector & 0xF0 > processorPriority & 0xF0 ? vector : nil
        }

        mutating func acknowledge() -> UInt8? {
            guard let vector = pending else { return nil }
            requested[vector] = false
            inService[vector] = true
            return vector
        }

        /// Vectors 0-15 are illegal (§11.5.2); they set ESR bit 6.
        mutating func accept(vector: UInt8, isLevel: Bool) {
            guard vector >= 16 else { return raise(error: 0x40) }
            guard isSoftwareEnabled else { return }
            requested[vector] = true
            triggerMode[vector] = isLevel
        }

        mutating func raise(error bit: UInt32) {
            errors |= bit
            let entry = self[.error]
            if !entry.contains(.masked), entry.vector >= 16, isSoftwareEnabled {
                requested[entry.vector] = true
                triggerMode[entry.vector] = false
            }
        }

        /// The vector of a level interrupt that the I/O APIC must hear of.
        mutating func endOfInterrupt() -> UInt8? {
            guard let vector = inService.highest else { return nil }
            inService[vector] = false
            return triggerMode[vector] ? vector : nil
        }

        /// Whether a message for `destination` is meant for this APIC (§11.6.2).
        public func matches(_ destination: InterruptMessage.Destination, index: Int, sender: Int?) -> Bool {
            switch destination {
            case .everybody: return isEnabled
            case .everybodyElse: return isEnabled && index != sender
            case .sender: return index == sender
            case .physical(let target):
                return isEnabled && (target == 0xFF || target == .max || target == currentID)
            case .logical(let target): return isEnabled && matches(logical: target)
            }
        }

        private func matches(logical target: UInt32) -> Bool {
            if isX2 {
                let own = x2LogicalID
                return target == .max || target >> 16 == own >> 16 && target & own & 0xFFFF != 0
            }
            let own = logicalDestination >> 24
            let target = target & 0xFF
            // DFR 1111: flat; 0000: cluster, four members in each.
            if destinationFormat >> 28 == 0xF { return target & own != 0 }
            return (target >> 4 == own >> 4 || target >> 4 == 0xF) && target & own & 0xF != 0
        }

        /// LDR in x2APIC mode is derived from the id (§11.12.10.2).
        var x2LogicalID: UInt32 { (initialID >> 4) << 16 | 1 << (initialID & 0xF) }
    }
}
