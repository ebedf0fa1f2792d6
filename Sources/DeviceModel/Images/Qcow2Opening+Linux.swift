// Opens a qcow2 image with everything that lies below it.
// Source: QEMU's docs/interop/qcow2.txt (backing files: relative to the image's own directory).
// Modelled: chains of qcow2 and raw files and block devices, locks on all of them. Not modelled: backing files on networks.
// Quirks: all files are open when this returns, so a process that is confined afterwards needs no more.
internal import CAIO
internal import Glibc
internal import Host

/// A file or block device as the tables' code sees it. Used on one thread.
final class HostImageFile: ImageFile, ImageLayer {
    private let descriptor: Descriptor
    private(set) var size: UInt64

    init(_ descriptor: Descriptor, size: UInt64) { (self.descriptor, self.size) = (descriptor, size) }

    func read(_ offset: UInt64, _ range: HostRange) throws(Qcow2Fault) {
        guard var position = Int(exactly: offset) else { throw .host(EIO) }
        var done = 0
        while done < range.count {
            let got = unsafe pread(descriptor.number, range.base + done, range.count - done, position)
            if got < 0 && errno == EINTR { continue }
            guard got >= 0 else { throw .host(errno) }
            if got == 0 { return [range.part(done, range.count - done)].clear() }
            done += got
            position += got
        }
    }

    func write(_ offset: UInt64, _ range: HostRange) throws(Qcow2Fault) {
        guard var position = Int(exactly: offset) else { throw .host(EIO) }
        var done = 0
        while done < range.count {
            let got = unsafe pwrite(descriptor.number, range.base + done, range.count - done, position)
            if got < 0 && errno == EINTR { continue }
            guard got > 0 else { throw .host(got == 0 ? EIO : errno) }
            done += got
            position += got
        }
        size = max(size, offset + UInt64(range.count))
    }

    func sync() throws(Qcow2Fault) {
        guard fdatasync(descriptor.number) == 0 else { throw .host(errno) }
    }

    func extend(to wanted: UInt64) throws(Qcow2Fault) {
        guard wanted > size else { return }
        guard let length = Int(exactly: wanted), ftruncate(descriptor.number, length) == 0 else { throw .host(errno) }
        size = wanted
    }

    func release(_ offset: UInt64, bytes: UInt64) {
        guard let position = Int(exactly: offset), let count = Int(exactly: bytes) else { return }
        // A host that cannot give the room back keeps it.
        _ = caio_punch_hole(descriptor.number, position, count)
    }

    // MARK: ImageLayer: a raw image below another one

    func read(_ offset: UInt64, into ranges: [HostRange]) throws(Qcow2Fault) {
        var at = offset
        for range in ranges {
            try read(at, range)
            at += UInt64(range.count)
        }
    }
}

extension Qcow2Image {
    /// Images that may lie on top of each other.
    private static let deepest = 64

    static func header(of opened: OpenedImage) throws(ImageFailure) -> Qcow2Header {
        let file = HostImageFile(opened.descriptor, size: opened.size)
        do throws(Qcow2Fault) {
            return try Qcow2Header(try file.bytes(0, Int(min(opened.size, 1 << 16))), fileBytes: opened.size)
        } catch { throw ImageFailure(opened.path, fault: error) }
    }

    static func map(_ opened: OpenedImage, readOnly: Bool, depth: Int) throws(ImageFailure) -> Qcow2Map {
        let header = try header(of: opened)
        // It may have grown since it was opened.
        let file = HostImageFile(opened.descriptor, size: opened.bytesNow)
        do throws(Qcow2Fault) {
            let below = try backing(header, of: opened.path, depth: depth)
            return try Qcow2Map(header, file: file, backing: below, readOnly: readOnly)
        } catch { throw ImageFailure(opened.path, fault: error) }
    }

    /// The layer that a header names. What goes wrong with it is told as a fault of the image above.
    private static func backing(
        _ header: Qcow2Header, of path: String, depth: Int
    ) throws(Qcow2Fault) -> (any ImageLayer)? {
        guard let backing = header.backing else { return nil }
        var name = backing.name
        if name.hasPrefix("file:") { name = String(name.dropFirst(5)) }
        guard !name.hasPrefix("json:"), !name.contains("://"), !name.hasPrefix("nbd:") else {
            throw .unsupported("the backing file \(name)")
        }
        if !name.hasPrefix("/"), let slash = path.lastIndex(of: "/") { name = path[...slash] + name }
        guard depth < deepest else { throw .damaged("a chain of more than \(deepest) backing files") }
        do throws(ImageFailure) {
            let opened = try OpenedImage(name, readOnly: true)
            let isQcow2 = try opened.hasMagic(Qcow2Header.magic)
            switch backing.format {
            case "qcow2": return try map(opened, readOnly: true, depth: depth + 1)
            case "raw", "file", "host_device": return HostImageFile(opened.descriptor, size: opened.size)
            case nil where !isQcow2: return HostImageFile(opened.descriptor, size: opened.size)
            case nil:
                let what = "a backing file without a stated format (qemu-img rebase -u -F states it)"
                throw ImageFailure(path, .lacking(what))
            case let format?: throw ImageFailure(name, .unsupported(format: format))
            }
        } catch { throw .below(error) }
    }
}

extension ImageFailure {
    init(_ path: String, fault: Qcow2Fault) {
        switch fault {
        case .unsupported(let what): self.init(path, .lacking(what))
        case .damaged(let what): self.init(path, .damaged(what))
        case .unclean: self.init(path, .unclean)
        case .host(let code): self.init(path, .unreadable(code))
        case .below(let failure): self = failure
        }
    }
}
