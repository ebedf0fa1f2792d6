/// A device on a bus. Splitting to accepted widths, faults and counters live here, once.
public final class Slot {
    public let name: String
    public let device: any Device
    public private(set) var reads: UInt64 = 0
    public private(set) var writes: UInt64 = 0
    public private(set) var faults: UInt64 = 0
    public init(_ name: String, _ device: any Device) { (self.name, self.device) = (name, device) }

    /// Reads `access`; parts that no register answers read as ones.
    public func read(_ access: Access, at now: Instant = .zero) -> UInt64 {
        device.advance(to: now)
        reads &+= 1
        let value = split(access) { part in
            do { return try device.read(part) } catch {
                faults &+= 1
                return part.width.ones
            }
        }
        device.settle()
        return value
    }

    /// Writes `access`; parts that no register takes are lost.
    public func write(_ value: UInt64, _ access: Access, at now: Instant = .zero) {
        device.advance(to: now)
        writes &+= 1
        _ = split(access) { part in
            let shift = (part.offset &- access.offset) * 8
            do { try device.write((value >> shift) & part.width.ones, part) } catch { faults &+= 1 }
            return 0
        }
        device.settle()
    }

    /// Makes one call for an access of a width the region takes, several of the
    /// widest smaller one otherwise. No call leaves the region: `body` is given
    /// whole accesses inside it, and what lies outside reads as ones.
    private func split(_ access: Access, _ body: (Access) -> UInt64) -> UInt64 {
        let regions = device.regions
        guard access.region < regions.count else { return access.width.ones }
        let widths = regions[access.region].widths
        let last = regions[access.region].range.upperBound - regions[access.region].range.lowerBound
        func inside(_ part: Access) -> Bool {
            part.offset <= last && last - part.offset >= UInt64(part.width.rawValue - 1)
        }
        if widths.contains(access.width), inside(access) { return body(access) }
        var part = access
        let smaller: [Width] = [.long, .word, .byte]
        guard let width = smaller.first(where: { $0.rawValue < access.width.rawValue && widths.contains($0) }) else {
            faults &+= 1
            return access.width.ones
        }
        part.width = width
        var value: UInt64 = 0
        for index in 0..<(access.width.rawValue / width.rawValue) {
            part.offset = access.offset &+ UInt64(index * width.rawValue)
            let answer = inside(part) ? body(part) & width.ones : width.ones
            value |= answer << UInt64(index * width.rawValue * 8)
        }
        return value
    }
}

/// One address space: which slot answers where. Later mappings of a range win
/// until they are removed, as a PCI BAR over a fixed device does.
public final class Bus {
    /// A region of a slot at its present place.
    public struct Mapping {
        public let slot: Slot
        public let region: Int
        public let range: ClosedRange<UInt64>
    }
    private var mappings: [Mapping] = []
    /// Sorted, disjoint view of `mappings`, rebuilt when they change.
    private var flat: [Mapping] = []
    private var flatBase: [UInt64] = []

    public init() {}

    /// Maps region `region` of `slot` at `range`, ahead of what was there.
    public func map(_ slot: Slot, region: Int, at range: ClosedRange<UInt64>) {
        mappings.append(Mapping(slot: slot, region: region, range: range))
        flatten()
    }

    /// Takes away every mapping of that region.
    public func unmap(_ slot: Slot, region: Int) {
        mappings.removeAll { $0.slot === slot && $0.region == region }
        flatten()
    }

    /// The mapping that answers `address` and how far its region's start lies below it.
    public func find(_ address: UInt64) -> (mapping: Mapping, offset: UInt64)? {
        var low = 0
        var high = flat.count
        while low < high {
            let middle = (low + high) / 2
            if flat[middle].range.upperBound < address { low = middle + 1 } else { high = middle }
        }
        guard low < flat.count, flat[low].range.contains(address) else { return nil }
        return (flat[low], address - flatBase[low])
    }

    public func read(_ address: UInt64, _ width: Width, at now: Instant) -> UInt64 {
        guard let (mapping, offset) = find(address) else { return width.ones }
        return mapping.slot.read(Access(region: mapping.region, offset: offset, width: width), at: now)
    }

    public func write(_ value: UInt64, _ address: UInt64, _ width: Width, at now: Instant) {
        guard let (mapping, offset) = find(address) else { return }
        mapping.slot.write(value, Access(region: mapping.region, offset: offset, width: width), at: now)
    }

    private func flatten() {
        var pieces: [(Mapping, UInt64)] = []
        for mapping in mappings {
            var next: [(Mapping, UInt64)] = []
            for (old, base) in pieces {
                if old.range.lowerBound < mapping.range.lowerBound {
                    let upper = min(old.range.upperBound, mapping.range.lowerBound &- 1)
                    next.append(
                        (Mapping(slot: old.slot, region: old.region, range: old.range.lowerBound...upper), base))
                }
                if old.range.upperBound > mapping.range.upperBound {
                    let lower = max(old.range.lowerBound, mapping.range.upperBound &+ 1)
                    next.append(
                        (Mapping(slot: old.slot, region: old.region, range: lower...old.range.upperBound), base))
                }
            }
            next.append((mapping, mapping.range.lowerBound))
            pieces = next
        }
        pieces.sort { $0.0.range.lowerBound < $1.0.range.lowerBound }
        flat = pieces.map(\.0)
        flatBase = pieces.map(\.1)
    }
}

/// Every chip of one machine. Reset and restore are two-phase: assign all
/// states, then settle all outputs, so no chip sees a half-reset neighbour.
public final class Board {
    public private(set) var slots: [Slot] = []
    public let ports = Bus()
    public let memory = Bus()
    public init() {}

    /// Puts a chip on the board, its regions at the places they name.
    @discardableResult public func attach(_ name: String, _ chip: any Device) -> Slot {
        let slot = Slot(name, chip)
        slots.append(slot)
        for (index, region) in chip.regions.enumerated() {
            bus(region.space).map(slot, region: index, at: region.range)
        }
        return slot
    }

    /// Puts a chip on the board without mapping it: a PCI card before its BARs are set.
    @discardableResult public func attachUnmapped(_ name: String, _ chip: any Device) -> Slot {
        let slot = Slot(name, chip)
        slots.append(slot)
        return slot
    }

    public func bus(_ space: Space) -> Bus { space == .port ? ports : memory }

    public func reset(_ cause: ResetCause) {
        for slot in slots { slot.device.assignReset(cause) }
        for slot in slots { slot.device.settle() }
    }

    /// The earliest deadline of any chip.
    public var deadline: Instant? { slots.compactMap(\.device.deadline).min() }

    /// Lets every chip whose deadline has come advance.
    public func advance(to now: Instant) {
        for slot in slots {
            guard let deadline = slot.device.deadline, deadline <= now else { continue }
            slot.device.advance(to: now)
            slot.device.settle()
        }
    }
}
