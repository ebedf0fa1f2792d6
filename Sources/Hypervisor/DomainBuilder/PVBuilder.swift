// Builds a 64-bit PV domain: where everything lies, the first page tables, the start info page.
// Source: Xen's public/xen.h ("Start-of-day memory layout"), public/elfnote.h.
// Machine frames equal guest frames: the software MMU bounds every access to the domain's own memory.
// Not modelled: 32-bit PV kernels, symbol tables, kernels that ask for superpages.
internal import CXen

/// Where a new domain's bytes go: guest-physical RAM, zero at first.
public protocol DomainMemory {
    var size: UInt64 { get }
    mutating func write(_ bytes: ArraySlice<UInt8>, at address: UInt64)
}

/// What the first vCPU and the back ends need to know of a PV domain that has been built.
public struct PVStart: Equatable, Sendable {
    /// Virtual addresses.
    public var entry: UInt64
    public var stackTop: UInt64
    public var startInfo: UInt64
    /// Guest-physical address of the top-level page table.
    public var pageTableRoot: UInt64
    /// Frames shared with xenstored and the console backend, and the frame of shared_info.
    public var storeFrame: UInt64
    public var consoleFrame: UInt64
    public var sharedInfoFrame: UInt64
    /// Guest-physical address of the hypercall page, for kernels that name one.
    public var hypercallPage: UInt64?
}

public struct PVBuilder {
    private let kernel: KernelImage
    private let ramdisk: ArraySlice<UInt8>
    private let commandLine: String
    private let pages: UInt64
    private let base: UInt64
    private let paddrOffset: UInt64

    static let pageSize: UInt64 = 4096

    /// Checks that `kernel` can run as a 64-bit PV domain of `memory` bytes.
    public init(
        kernel: KernelImage, ramdisk: ArraySlice<UInt8>, commandLine: String, memory: UInt64
    ) throws(KernelError) {
        guard kernel.notes.isEmpty == false else { throw .noXenNotes }
        guard kernel.is64Bit else { throw .unsupportedFeature("32-bit PV") }
        guard let base = kernel.number(XEN_ELFNOTE_VIRT_BASE) else { throw .missingNote("VIRT_BASE") }
        (self.kernel, self.ramdisk, self.commandLine, self.base) = (kernel, ramdisk, commandLine, base)
        paddrOffset = kernel.number(XEN_ELFNOTE_PADDR_OFFSET) ?? base
        pages = memory / Self.pageSize
    }

    /// Fills `memory` and says how to start. `storePort` and `consolePort` are event channels of the domain;
    /// `sharedInfoFrame` lies outside of its RAM.
    public func build(
        into memory: inout some DomainMemory, storePort: UInt32, consolePort: UInt32, sharedInfoFrame: UInt64
    ) throws(KernelError) -> PVStart {
        let layout = try Layout(self)
        for segment in kernel.segments { memory.write(segment.bytes, at: physical(segment.address)) }
        memory.write(ramdisk, at: layout.ramdisk * Self.pageSize)
        writeP2M(layout, &memory)
        var tables = PageTables(first: layout.tables, count: layout.tableCount)
        for frame in 0..<layout.end {
            tables.map(base &+ frame * Self.pageSize, to: frame, writable: !layout.isTable(frame))
        }
        if layout.p2mVirtual != nil, let virtual = kernel.number(XEN_ELFNOTE_INIT_P2M) {
            for index in 0..<layout.p2mPages {
                tables.map(virtual &+ index * Self.pageSize, to: layout.p2m + index, writable: true)
            }
        }
        tables.write(to: &memory)
        let start = PVStart(
            entry: kernel.number(XEN_ELFNOTE_ENTRY) ?? kernel.entry,
            stackTop: base &+ (layout.stack + 1) * Self.pageSize,
            startInfo: base &+ layout.startInfo * Self.pageSize, pageTableRoot: layout.tables * Self.pageSize,
            storeFrame: layout.store, consoleFrame: layout.console, sharedInfoFrame: sharedInfoFrame,
            hypercallPage: kernel.number(XEN_ELFNOTE_HYPERCALL_PAGE).map { $0 &- base })
        writeStartInfo(layout, start, storePort, consolePort, &memory)
        return start
    }

    /// Guest-physical address of a segment's address.
    private func physical(_ address: UInt64) -> UInt64 { address &- (paddrOffset == base ? base : paddrOffset) }

    private func writeP2M(_ layout: Layout, _ memory: inout some DomainMemory) {
        var list: [UInt8] = []
        list.reserveCapacity(Int(pages * 8))
        for frame in 0..<pages { list.append(frame) }
        memory.write(list[...], at: layout.p2m * Self.pageSize)
    }

    /// struct start_info, public/xen.h.
    private func writeStartInfo(
        _ layout: Layout, _ start: PVStart, _ storePort: UInt32, _ consolePort: UInt32,
        _ memory: inout some DomainMemory
    ) {
        var info: [UInt8] = Array("xen-3.0-x86_64".utf8)
        info += [UInt8](repeating: 0, count: 32 - info.count)
        info.append(pages)
        info.append(start.sharedInfoFrame * Self.pageSize)
        info.append(UInt32(layout.ramdiskIsFrame && !ramdisk.isEmpty ? SIF_MOD_START_PFN : 0))
        info.append(UInt32(0))
        info.append(start.storeFrame)
        info.append(UInt64(storePort))
        info.append(start.consoleFrame)
        info.append(UInt64(consolePort))
        info.append(base &+ layout.tables * Self.pageSize)
        info.append(layout.tableCount)
        info.append(layout.p2mVirtual ?? (base &+ layout.p2m * Self.pageSize))
        let module = layout.ramdiskIsFrame ? layout.ramdisk : base &+ layout.ramdisk * Self.pageSize
        info.append(ramdisk.isEmpty ? UInt64(0) : module)
        info.append(UInt64(ramdisk.count))
        let line = Array(commandLine.utf8.prefix(Int(MAX_GUEST_CMDLINE) - 1))
        info += line + [UInt8](repeating: 0, count: Int(MAX_GUEST_CMDLINE) - line.count)
        info.append(layout.p2mVirtual == nil ? UInt64(0) : layout.p2m)
        info.append(layout.p2mVirtual == nil ? UInt64(0) : layout.p2mPages)
        memory.write(info[...], at: layout.startInfo * Self.pageSize)
    }

    /// The order in which things follow each other in guest frames, from 0.
    struct Layout {
        var ramdisk: UInt64 = 0
        var ramdiskIsFrame = false
        var p2m: UInt64 = 0
        var p2mPages: UInt64
        /// Where the p2m list is mapped if not with the rest.
        var p2mVirtual: UInt64?
        var startInfo: UInt64
        var store: UInt64
        var console: UInt64
        var tables: UInt64
        var tableCount: UInt64
        var stack: UInt64
        /// One past the last frame that is mapped at VIRT_BASE.
        var end: UInt64

        init(_ builder: PVBuilder) throws(KernelError) {
            let kernelEnd = builder.kernel.segments.map { builder.physical($0.address) &+ $0.size }.max() ?? 0
            var next = (kernelEnd &+ 4095) / PVBuilder.pageSize
            let ramdiskPages = (UInt64(builder.ramdisk.count) + 4095) / PVBuilder.pageSize
            ramdiskIsFrame = builder.kernel.number(XEN_ELFNOTE_MOD_START_PFN) == 1
            let p2mAddress = builder.kernel.number(XEN_ELFNOTE_INIT_P2M)
            let p2mPages = (builder.pages * 8 + 4095) / PVBuilder.pageSize
            (p2mVirtual, self.p2mPages) = (p2mAddress, p2mPages)
            if !ramdiskIsFrame { ramdisk = Self.take(&next, ramdiskPages) }
            if p2mVirtual == nil { p2m = Self.take(&next, p2mPages) }
            (startInfo, store, console) = (Self.take(&next, 1), Self.take(&next, 1), Self.take(&next, 1))
            tables = next
            // The tables map themselves, so their number depends on the end they push out.
            var count: UInt64 = 1
            while true {
                let needed = Self.tablesNeeded(
                    from: builder.base, pages: Self.mappedEnd(next &+ count &+ 1),
                    also: p2mAddress.map { ($0, p2mPages) })
                if needed <= count { break }
                count = needed
            }
            tableCount = count
            next &+= count
            stack = Self.take(&next, 1)
            end = Self.mappedEnd(next)
            next = end
            if p2mVirtual != nil { p2m = Self.take(&next, p2mPages) }
            if ramdiskIsFrame { ramdisk = Self.take(&next, ramdiskPages) }
            guard next <= builder.pages else {
                throw .tooLarge(needed: next &* PVBuilder.pageSize, available: builder.pages * PVBuilder.pageSize)
            }
        }

        private static func take(_ next: inout UInt64, _ count: UInt64) -> UInt64 {
            defer { next &+= count }
            return next
        }

        func isTable(_ frame: UInt64) -> Bool { frame >= tables && frame < tables + tableCount }

        /// At least 512 KiB behind the last thing, then up to the next 4 MiB.
        static func mappedEnd(_ frame: UInt64) -> UInt64 { (frame &+ 128 &+ 1023) / 1024 * 1024 }

        /// Page-table pages for a mapping of `pages` at `from`, and for a second one elsewhere.
        static func tablesNeeded(from: UInt64, pages: UInt64, also: (UInt64, UInt64)?) -> UInt64 {
            var needed: UInt64 = 1
            for shift in [UInt64(21), 30, 39] {
                var spans = Set<UInt64>()
                for (start, count) in [(from, pages)] + (also.map { [$0] } ?? []) where count > 0 {
                    let last = start &+ count &* PVBuilder.pageSize &- 1
                    for span in (start >> shift)...(last >> shift) { spans.insert(span) }
                }
                needed += UInt64(spans.count)
            }
            return needed
        }
    }
}

/// Four-level page tables under construction, in consecutive frames; the first is the top.
struct PageTables {
    private let first: UInt64
    private let count: UInt64
    private var frames: [[UInt64]] = []

    init(first: UInt64, count: UInt64) {
        (self.first, self.count) = (first, count)
        frames = [[UInt64](repeating: 0, count: 512)]
    }

    /// Present, accessed, dirty; writable where told.
    mutating func map(_ virtual: UInt64, to frame: UInt64, writable: Bool) {
        var table = 0
        for shift in [UInt64(39), 30, 21] {
            let index = Int(virtual >> shift & 511)
            if frames[table][index] == 0 {
                frames[table][index] = (first + UInt64(frames.count)) << 12 | 0x67
                frames.append([UInt64](repeating: 0, count: 512))
            }
            table = Int(frames[table][index] >> 12 - first)
        }
        frames[table][Int(virtual >> 12 & 511)] = frame << 12 | (writable ? 0x63 : 0x61)
    }

    func write(to memory: inout some DomainMemory) {
        precondition(frames.count <= Int(count), "more page tables than were counted")
        for (index, frame) in frames.enumerated() {
            var bytes: [UInt8] = []
            bytes.reserveCapacity(4096)
            for entry in frame { bytes.append(entry) }
            memory.write(bytes[...], at: (first + UInt64(index)) << 12)
        }
    }
}

extension [UInt8] {
    /// Appends an integer, little-endian.
    mutating func append<T: FixedWidthInteger & UnsignedInteger>(_ value: T) {
        for shift in stride(from: 0, to: T.bitWidth, by: 8) { append(UInt8(truncatingIfNeeded: value >> T(shift))) }
    }
}
