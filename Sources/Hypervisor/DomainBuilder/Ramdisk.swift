// Whether a ramdisk is whole: its archives are walked to their ends.
// Source: Linux's Documentation/driver-api/early-userspace/buffer-format.rst (cpio archives, packed or not, one behind
// the other), RFC 1952 (gzip), RFC 8878 §3.1 (zstd frames and blocks), the .xz file format §2.1.2 (stream footer).
// Modelled: cpio, gzip, zstd and xz. Not modelled: contents; a checksum that is wrong is the kernel's to find.
// Quirks: a file that begins with none of these is some other kernel's, and is not judged.

public enum Ramdisk {
    /// Throws if `bytes` end within an archive.
    public static func check(_ bytes: ArraySlice<UInt8>) throws(KernelError) {
        var rest = bytes
        while true {
            rest = rest.drop { $0 == 0 }
            guard let length = try firstArchive(rest) else { return }
            rest = rest.dropFirst(length)
        }
    }

    /// The length of the archive that `bytes` begin with; nil: there is none that is known.
    private static func firstArchive(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> Int? {
        let head = Array(bytes.prefix(6))
        if head.starts(with: [0x1F, 0x8B]) { return try Decompression.gzipLength(bytes) }
        if head.starts(with: [0x28, 0xB5, 0x2F, 0xFD]) { return try zstdLength(bytes) }
        if head.starts(with: [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0]) { return try xzLength(bytes) }
        if head.starts(with: "07070".utf8), let last = head.last, [0x31, 0x32].contains(last) {
            return try archiveLength(bytes)
        }
        return nil
    }

    /// Headers of 110 bytes, each with a name and a file, up to the one that is called TRAILER!!!.
    private static func archiveLength(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> Int {
        let fields = Fields(bytes, part: "cpio archive")
        var at: UInt64 = 0
        while at < bytes.count {
            let header = try fields.slice(at, 110)
            func number(_ index: Int) throws(KernelError) -> UInt64 {
                let digits = header.dropFirst(6 + 8 * index).prefix(8)
                guard let number = UInt64(String(decoding: digits, as: UTF8.self), radix: 16) else {
                    throw .damaged("cpio")
                }
                return number
            }
            guard header.starts(with: "07070".utf8) else { throw .damaged("cpio") }
            // c_filesize and c_namesize are the seventh and the twelfth field.
            let (fileSize, nameSize) = (try number(6), try number(11))
            let name = try fields.slice(at + 110, nameSize)
            let file = (at + 110 + nameSize + 3) & ~3
            _ = try fields.slice(file, fileSize)
            at = (file + fileSize + 3) & ~3
            if name.dropLast().elementsEqual("TRAILER!!!".utf8) { break }
        }
        return Int(min(at, UInt64(bytes.count)))
    }

    /// A frame: its header, blocks that tell their lengths, and a checksum if it has one.
    private static func zstdLength(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> Int {
        let fields = Fields(bytes, part: "zstd data")
        let descriptor = try fields.number(4, as: UInt8.self)
        let isSingle = descriptor & 0x20 != 0
        let sizeBytes = [isSingle ? 1 : 0, 2, 4, 8][Int(descriptor >> 6)]
        var at = UInt64(5 + (isSingle ? 0 : 1) + [0, 1, 2, 4][Int(descriptor & 3)] + sizeBytes)
        while true {
            let header = try fields.slice(at, 3).reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
            let isRepeated = header >> 1 & 3 == 1
            let size = isRepeated ? 1 : header >> 3
            _ = try fields.slice(at + 3, size)
            at += 3 + size
            if header & 1 != 0 { break }
        }
        if descriptor & 4 != 0 { _ = try fields.slice(at, 4) }
        return Int(at) + (descriptor & 4 != 0 ? 4 : 0)
    }

    /// Everything up to the footer at the end of the file: nobody puts more behind it than zeroes.
    private static func xzLength(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> Int {
        let end = bytes.lastIndex { $0 != 0 }.map { $0 + 1 } ?? bytes.startIndex
        guard end - bytes.startIndex >= 24, bytes[..<end].suffix(2).elementsEqual("YZ".utf8) else {
            throw .truncated("xz data")
        }
        return bytes.count
    }
}
