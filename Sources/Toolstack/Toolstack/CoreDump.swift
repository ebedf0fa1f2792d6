// A domain's memory as a core file.
// Source: Xen's docs/misc/dump-core-format.txt; notes of public/elfnote.h (XEN_ELFNOTE_DUMPCORE_*).
// Modelled: .note.Xen, .xen_pfn or .xen_p2m, .xen_pages. Not modelled: .xen_prstatus, .xen_shared_info.
// Quirks: the hypervisor hands over its memory file; empty parts of it become holes.

internal import DomainConfig
internal import Foundation
internal import Host

struct CoreDump {
    private static let page = 4096
    /// Where RAM stops below 4 GiB.
    private static let hole = 0xE000_0000
    private static let chunk = 1 << 20

    let config: DomainConfig
    /// The guest's RAM, open for reading.
    let memory: Descriptor
    let size: Int

    /// Asks the domain's hypervisor, at its control socket, for the memory.
    init(_ config: DomainConfig, control: String) throws(ToolstackError) {
        self.config = config
        do {
            let (own, other) = try MessageSocket.pair()
            _ = try Control.ask(control, ControlRequest("memory"), descriptors: [other.descriptor.number])
            guard !HostFile.waitReadable([own.descriptor.number], milliseconds: 5000).isEmpty,
                let memory = try own.receive()?.descriptors.first
            else { throw ToolstackError("the hypervisor does not hand over the domain's memory") }
            self.memory = memory
            size = try HostFile.status("/proc/self/fd/\(memory.number)").size
        } catch let error as ToolstackError {
            throw error
        } catch {
            throw ToolstackError("the domain's memory: \(error)")
        }
    }

    private var pages: Int { size / Self.page }

    /// Guest frame numbers of the pages, in the order of the file.
    private func frame(_ page: Int) -> UInt64 {
        let low = min(size, Self.hole) / Self.page
        return UInt64(page < low ? page : page - low + (1 << 20))
    }

    func write(to path: String) throws(ToolstackError) {
        do {
            let file = try HostFile.open(path, [.write, .create, .truncate])
            let notes = noteSection
            let names: [UInt8] = Self.sectionNames.flatMap { Array($0.utf8) + [0] }
            let isPV = config.kind == .pv
            let tableSize = pages * (isPV ? 16 : 8)
            // ELF header, section headers, notes, names, then the table of frames and the pages, page-aligned.
            let notesAt = 64 + 64 * 5
            let namesAt = notesAt + notes.count
            let tableAt = (namesAt + names.count + 15) & ~15
            let pagesAt = (tableAt + tableSize + Self.page - 1) & ~(Self.page - 1)
            var head = Self.elfHeader
            head += Self.section(name: 0, type: 0, at: 0, size: 0, entry: 0)
            head += Self.section(name: 1, type: 7, at: notesAt, size: notes.count, entry: 0)
            head += Self.section(name: 11, type: 3, at: namesAt, size: names.count, entry: 0)
            head += Self.section(name: isPV ? 21 : 30, type: 1, at: tableAt, size: tableSize, entry: isPV ? 16 : 8)
            head += Self.section(name: 39, type: 1, at: pagesAt, size: size, entry: Self.page)
            head += notes + names
            head += [UInt8](repeating: 0, count: tableAt - head.count)
            try HostFile.write(head, to: file.number)
            try writeTable(isPV, to: file)
            try copyPages(to: file, at: pagesAt)
        } catch {
            throw ToolstackError("\(error)")
        }
    }

    private static let sectionNames = ["", ".note.Xen", ".shstrtab", ".xen_p2m", ".xen_pfn", ".xen_pages"]

    private func writeTable(_ isPV: Bool, to file: Descriptor) throws(HostFailure) {
        var bytes: [UInt8] = []
        for page in 0..<pages {
            let frame = Self.bytes(frame(page))
            bytes += isPV ? frame + frame : frame
            if bytes.count >= Self.chunk || page + 1 == pages {
                try HostFile.write(bytes, to: file.number)
                bytes.removeAll(keepingCapacity: true)
            }
        }
    }

    private func copyPages(to file: Descriptor, at start: Int) throws {
        let source = FileHandle(fileDescriptor: memory.number, closeOnDealloc: false)
        let target = FileHandle(fileDescriptor: file.number, closeOnDealloc: false)
        var place = 0
        while place < size {
            try source.seek(toOffset: UInt64(place))
            guard let bytes = try source.read(upToCount: min(Self.chunk, size - place)), !bytes.isEmpty else { break }
            if bytes.contains(where: { $0 != 0 }) {
                try target.seek(toOffset: UInt64(start + place))
                try target.write(contentsOf: bytes)
            }
            place += bytes.count
        }
        try target.truncate(atOffset: UInt64(start + size))
    }

    // MARK: - ELF

    private static func bytes(_ value: UInt64, _ count: Int = 8) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }

    /// Elf64_Ehdr: a core file of x86-64 with five sections and no segments.
    private static var elfHeader: [UInt8] {
        var header: [UInt8] = [0x7F, 0x45, 0x4C, 0x46, 2, 1, 1, 0] + [UInt8](repeating: 0, count: 8)
        header += bytes(4, 2) + bytes(62, 2) + bytes(1, 4) + bytes(0) + bytes(0) + bytes(64) + bytes(0, 4)
        return header + bytes(64, 2) + bytes(0, 2) + bytes(0, 2) + bytes(64, 2) + bytes(5, 2) + bytes(2, 2)
    }

    /// Elf64_Shdr.
    private static func section(name: Int, type: UInt64, at place: Int, size: Int, entry: Int) -> [UInt8] {
        var header = bytes(UInt64(name), 4) + bytes(type, 4) + bytes(0) + bytes(0)
        header += bytes(UInt64(place)) + bytes(UInt64(size)) + bytes(0, 4) + bytes(0, 4)
        return header + bytes(UInt64(type == 0 ? 0 : 8)) + bytes(UInt64(entry))
    }

    private static func note(_ type: UInt64, _ description: [UInt8]) -> [UInt8] {
        bytes(4, 4) + bytes(UInt64(description.count), 4) + bytes(type, 4) + Array("Xen".utf8) + [0] + description
    }

    /// NONE, HEADER, XEN_VERSION, FORMAT_VERSION.
    private var noteSection: [UInt8] {
        // XC_CORE_MAGIC, or XC_CORE_MAGIC_HVM for a domain whose frames are its own.
        let magic: UInt64 = config.kind == .pv ? 0xF00F_EBED : 0xF00F_EBEE
        let header = [magic, UInt64(config.vcpus), UInt64(pages), UInt64(Self.page)].flatMap { Self.bytes($0) }
        func text(_ string: String, _ count: Int) -> [UInt8] {
            let bytes = Array(string.utf8.prefix(count - 1))
            return bytes + [UInt8](repeating: 0, count: count - bytes.count)
        }
        var version = Self.bytes(4) + Self.bytes(17) + text(XenVersion.extra, 16)
        version += text("swift", 64) + text("", 16) + text("", 32) + text("", 32)
        version += text(XenVersion.capabilities, 1024) + text("", 64)
        version += Self.bytes(0xFFFF_8000_0000_0000) + Self.bytes(UInt64(Self.page))
        return Self.note(0x200_0000, []) + Self.note(0x200_0001, header) + Self.note(0x200_0002, version)
            + Self.note(0x200_0003, Self.bytes(1))
    }
}

extension Command {
    static let dumpCore = Command(
        name: "dump-core", summary: "Core dump a domain", usage: "DOMAIN FILE", leastOperands: 2, mostOperands: 2,
        run: { session, options throws(ToolstackError) in
            let record = try session.guest(options.operands[0])
            guard let config = try? session.run.directory(of: record.domid).readConfig() else {
                throw ToolstackError("the domain's config is gone")
            }
            let dump = try CoreDump(config, control: session.control(record))
            let state = try Control.ask(session.control(record), ControlRequest("status")).state ?? ""
            // The memory of one moment.
            let pauses = !state.contains("p")
            if pauses { _ = try Control.ask(session.control(record), ControlRequest("pause")) }
            defer { if pauses { _ = try? Control.ask(session.control(record), ControlRequest("unpause")) } }
            try dump.write(to: options.operands[1])
            return 0
        })
}
