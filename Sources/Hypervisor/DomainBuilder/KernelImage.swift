// A kernel file: what to load where, where to start, and what it tells Xen.
// Source: System V gABI (ELF), Linux's Documentation/x86/boot.rst (bzImage), Xen's public/elfnote.h.
// Modelled: ELF32 and ELF64 little-endian x86, notes of PT_NOTE; not modelled: relocation, symbol tables.
internal import CXen

public struct KernelImage: Sendable {
    public struct Segment: Sendable {
        /// Guest-physical address before PADDR_OFFSET.
        public var address: UInt64
        public var bytes: ArraySlice<UInt8>
        /// Bytes in memory; what `bytes` does not cover is zero.
        public var size: UInt64
    }
    /// A Xen ELF note's value.
    public enum Note: Equatable, Sendable {
        case number(UInt64)
        case text(String)
    }

    public var segments: [Segment] = []
    public var entry: UInt64 = 0
    public var is64Bit = true
    public var notes: [UInt32: Note] = [:]

    /// Reads a bzImage or an ELF file, packed or not.
    public init(_ file: [UInt8]) throws(KernelError) {
        let elf = try Self.payload(of: file)
        let fields = Fields(elf[...], part: "ELF header")
        guard elf.starts(with: [0x7F, 0x45, 0x4C, 0x46]), elf.count > 20 else { throw .notAKernel }
        is64Bit = elf[4] == 2
        let machine = try fields.number(18, as: UInt16.self)
        guard machine == (is64Bit ? 62 : 3) else { throw .wrongMachine(machine) }
        entry = is64Bit ? try fields.number(24, as: UInt64.self) : UInt64(try fields.number(24, as: UInt32.self))
        try readProgramHeaders(fields)
        guard !segments.isEmpty else { throw .truncated("program headers") }
    }

    /// The ELF file within a bzImage; an ELF file as it is.
    private static func payload(of file: [UInt8]) throws(KernelError) -> [UInt8] {
        guard file.count > 0x260 else { throw .notAKernel }
        guard file[0x202..<0x206].elementsEqual("HdrS".utf8) else {
            do { return try Decompression.unpack(file[...]) } catch {
                throw error == .unknownCompression ? .notAKernel : error
            }
        }
        let fields = Fields(file[...], part: "boot header")
        let version = try fields.number(0x206, as: UInt16.self)
        guard version >= 0x208 else { throw .unsupportedFeature("boot protocol below 2.08") }
        let setupSectors = try fields.number(0x1F1, as: UInt8.self)
        let start = (UInt64(setupSectors == 0 ? 4 : setupSectors) + 1) * 512
        let offset = UInt64(try fields.number(0x248, as: UInt32.self))
        let length = UInt64(try fields.number(0x24C, as: UInt32.self))
        return try Decompression.unpack(try Fields(file[...], part: "payload").slice(start + offset, length))
    }

    private mutating func readProgramHeaders(_ fields: Fields) throws(KernelError) {
        let table = is64Bit ? try fields.number(32, as: UInt64.self) : UInt64(try fields.number(28, as: UInt32.self))
        let size = UInt64(try fields.number(is64Bit ? 54 : 42, as: UInt16.self))
        let count = try fields.number(is64Bit ? 56 : 44, as: UInt16.self)
        for index in 0..<UInt64(count) {
            let header = Fields(try fields.slice(table &+ index * size, size), part: "program header")
            func word(_ wide: Int, _ narrow: Int) throws(KernelError) -> UInt64 {
                is64Bit ? try header.number(wide, as: UInt64.self) : UInt64(try header.number(narrow, as: UInt32.self))
            }
            let bytes = try fields.slice(try word(8, 4), try word(32, 16))
            switch try header.number(0, as: UInt32.self) {
            case 1:
                let size = try word(40, 20)
                guard size >= UInt64(bytes.count), size < 1 << 32 else { throw .truncated("segment") }
                segments.append(Segment(address: try word(24, 12), bytes: bytes, size: size))
            case 4: try readNotes(bytes)
            default: continue
            }
        }
    }

    private mutating func readNotes(_ bytes: ArraySlice<UInt8>) throws(KernelError) {
        let fields = Fields(bytes, part: "notes")
        var at = 0
        while at <= bytes.count - 12 {
            let nameSize = Int(try fields.number(at, as: UInt32.self))
            let valueSize = Int(try fields.number(at + 4, as: UInt32.self))
            let type = try fields.number(at + 8, as: UInt32.self)
            let name = try fields.slice(UInt64(at + 12), UInt64(nameSize))
            let valueStart = at + 12 + (nameSize + 3) & ~3
            let value = try fields.slice(UInt64(valueStart), UInt64(valueSize))
            if name.elementsEqual("Xen\0".utf8) { notes[type] = Self.note(type, value) }
            at = valueStart + (valueSize + 3) & ~3
        }
    }

    private static func note(_ type: UInt32, _ value: ArraySlice<UInt8>) -> Note {
        let textTypes: Set<UInt32> = [5, 6, 7, 8, 9, 10, 11]  // XEN_VERSION ... BSD_SYMTAB
        if !textTypes.contains(type), [4, 8, 16].contains(value.count) {
            return .number(value.prefix(8).reversed().reduce(0) { $0 << 8 | UInt64($1) })
        }
        return .text(String(decoding: value.prefix { $0 != 0 }, as: UTF8.self))
    }

    /// A numeric note by its XEN_ELFNOTE_ number.
    public func number(_ note: Int32) -> UInt64? {
        guard case .number(let value) = notes[UInt32(bitPattern: note)] else { return nil }
        return value
    }

    public func text(_ note: Int32) -> String? {
        guard case .text(let value) = notes[UInt32(bitPattern: note)] else { return nil }
        return value
    }

    /// One past the highest guest-physical address any segment uses.
    public var end: UInt64 { segments.map { $0.address &+ $0.size }.max() ?? 0 }
}
