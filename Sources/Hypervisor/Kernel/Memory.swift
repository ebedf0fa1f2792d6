// A domain's memory: guest RAM, firmware, video memory, and the map that the engines see.
// Source: docs/ARCHITECTURE.md, "Memory".
// Modelled: layout changes while no vCPU runs. Quirks: the map is only replaced inside `Gate.exclusively`.

internal import DomainConfig
internal import Host
internal import Ioreq
internal import Processor
internal import Synchronization

/// Pages of an HVM domain that are no RAM: rings for xenstore and the console, where Xen's toolstack has them
/// (xc_hvm_build_x86.c: eight pages below 0xFF000000, these the fifth and the last).
struct SpecialFrame: Sendable {
    /// Among the hypervisor's own frames.
    var index: Int
    var guestFrame: UInt64
    static let store = SpecialFrame(index: 1 + GrantTable.maximumFrames, guestFrame: 0xFEFFC)
    static let console = SpecialFrame(index: 2 + GrantTable.maximumFrames, guestFrame: 0xFEFFF)
    static let all = [store, console]
    /// Frames of the hypervisor's own in all.
    static let end = 3 + GrantTable.maximumFrames
}

@safe final class Memory: Sendable {
    let ram: GuestRAM
    let rom: SharedMemory
    let video: SharedMemory
    /// The hypervisor's own frames: shared info, then the grant table, then those of `SpecialFrame`.
    let frames: SharedMemory
    let map: PhysicalMap
    /// Of a PV domain: the guest frame of each machine frame. They are the same, unless the guest changes its own.
    private let table: SharedMemory?
    private let layout: Mutex<GuestMemoryLayout>

    init(_ config: DomainConfig) throws {
        // What the domain may come to have; the host gives what is written.
        let bytes = UInt64(max(config.memory, config.maxmem)) << 20
        if let available = HostMemory.available, UInt64(config.memory) << 20 > available {
            throw SetupFailure(
                "the domain wants \(config.memory) MiB of memory but only \(available >> 20) MiB are available")
        }
        let isPV = config.kind == .pv
        let image = config.kind == .hvm ? try Self.firmware(config.firmwareDirectory + "/bios-256k.bin") : []
        ram = try GuestRAM.make(size: bytes, isFlat: isPV)
        video = try SharedMemory(named: "apus-video", size: config.display.videoMemory << 20)
        frames = try SharedMemory(named: "apus-frames", size: SpecialFrame.end << 12)
        rom = try SharedMemory(named: "apus-bios", size: max(image.count, 4096))
        unsafe rom.bytes.copyBytes(from: image)
        var layout = GuestMemoryLayout(
            ramBytes: bytes, romBytes: UInt64(image.count), videoBytes: UInt64(config.display.videoMemory) << 20,
            isParavirtual: isPV)
        let tableBytes = isPV ? Int(bytes >> 9) : 0
        table = isPV ? try SharedMemory(named: "apus-frame-table", size: tableBytes) : nil
        map = PhysicalMap(
            paravirtual: isPV
                ? ParavirtualMemory(
                    frames: bytes >> 12, table: layout.tableAddress, tableBytes: UInt64(tableBytes)) : nil,
            file: unsafe MemoryFile(descriptor: ram.memory.descriptor.number, bytes: ram.memory.bytes))
        if config.kind == .hvm {
            for special in SpecialFrame.all { layout.frames[special.index] = special.guestFrame << 12 }
        }
        self.layout = Mutex(layout)
        if isPV { for frame in 0..<(bytes >> 12) { setFrame(frame, to: frame) } }
        rebuild()
    }

    /// An entry of a PV domain's machine-to-physical table.
    func setFrame(_ machineFrame: UInt64, to frame: UInt64) {
        guard let base = unsafe table?.bytes.baseAddress, machineFrame < ram.size >> 12 else { return }
        unsafe base.storeBytes(of: frame, toByteOffset: Int(machineFrame) * 8, as: UInt64.self)
    }

    private static func firmware(_ path: String) throws -> [UInt8] {
        let image = try HostFile.read(path)
        guard image.count >= 0x2_0000, image.count <= 0x100_0000, image.count & 0xFFFF == 0 else {
            throw SetupFailure("\(path) is no BIOS image: it has \(image.count) bytes")
        }
        return image
    }

    /// Changes the layout and shows it to the engines. Only while no vCPU runs.
    func change(_ body: (inout GuestMemoryLayout) -> Void) {
        layout.withLock { body(&$0) }
        rebuild()
    }

    /// Whether a change would be one.
    func differs(_ body: (inout GuestMemoryLayout) -> Void) -> Bool {
        layout.withLock { present in
            var next = present
            body(&next)
            return next != present
        }
    }

    private func rebuild() {
        let (pieces, mask) = layout.withLock { ($0.pieces, $0.addressMask) }
        map.replace(with: pieces.compactMap { region($0) }, addressMask: mask)
    }

    private func region(_ piece: Piece) -> PhysicalRegion? {
        let host: UnsafeMutableRawPointer?
        var codeMap: UnsafeMutablePointer<UInt8>?
        switch piece.backing {
        case .ram(let offset):
            unsafe host = ram.memory.bytes.baseAddress.map { unsafe $0 + Int(offset) }
            unsafe codeMap = ram.codeMap.bytes.baseAddress.map {
                unsafe $0.assumingMemoryBound(to: UInt8.self) + Int(offset >> 12)
            }
        case .rom(let offset): unsafe host = rom.bytes.baseAddress.map { unsafe $0 + Int(offset) }
        case .video(let offset): unsafe host = video.bytes.baseAddress.map { unsafe $0 + Int(offset) }
        case .table(let offset): unsafe host = table?.bytes.baseAddress.map { unsafe $0 + Int(offset) }
        case .frame(let offset): unsafe host = frames.bytes.baseAddress.map { unsafe $0 + Int(offset) }
        }
        guard let host = unsafe host else { return nil }
        return unsafe PhysicalRegion(
            start: piece.start, bytes: piece.bytes, host: host, isWritable: piece.isWritable, codeMap: codeMap)
    }

    /// A write to 0xC0000-0xFFFFF that the map does not take: RAM behind ROM if PAM lets writes through.
    func writeShadowed(_ address: UInt64, size: Int, value: UInt64) {
        let segment = layout.withLock { $0.segments[GuestMemoryLayout.segment(of: address)] }
        guard segment.writesRAM else { return }
        write(address, Array((0..<size).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }))
    }

    /// Writes guest RAM; false if it is not RAM.
    @discardableResult func write(_ address: UInt64, _ bytes: [UInt8]) -> Bool {
        guard let target = unsafe ram.pointer(to: address, bytes: bytes.count) else { return false }
        unsafe UnsafeMutableRawBufferPointer(start: target, count: bytes.count).copyBytes(from: bytes)
        return true
    }

    /// Reads guest RAM; nil if it is not RAM.
    func read(_ address: UInt64, bytes count: Int) -> [UInt8]? {
        guard let source = unsafe ram.pointer(to: address, bytes: count) else { return nil }
        return unsafe Array(UnsafeRawBufferPointer(start: source, count: count))
    }
}
