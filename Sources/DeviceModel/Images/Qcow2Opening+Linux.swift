// Opens a qcow2 image with everything that lies below it.
// Source: QEMU's docs/interop/qcow2.txt (backing files: relative to the image's own directory).
// Modelled: chains of qcow2 and raw files and block devices, locks on all of them. Not modelled: backing files on networks.
// Quirks: all files are opened at once, so a process that is confined afterwards needs no more.
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

    /// Opens and locks what lies below `image`.
    static func openLayers(below image: OpenedImage) throws(ImageFailure) -> [OpenedImage] {
        var layers: [OpenedImage] = []
        var above = image
        while let backing = try header(of: above).backing {
            guard layers.count < deepest else {
                throw ImageFailure(above.path, .damaged("a chain of more than \(deepest) backing files"))
            }
            let layer = try OpenedImage(try path(of: backing.name, below: above.path), readOnly: true)
            layers.append(layer)
            guard try isQcow2(layer, backing.format, below: above.path) else { break }
            above = layer
        }
        return layers
    }

    /// The tables of `image`, which lies on `layers`.
    static func map(
        _ image: OpenedImage, on layers: ArraySlice<OpenedImage>, readOnly: Bool
    ) throws(ImageFailure) -> Qcow2Map {
        let header = try header(of: image)
        var below: (any ImageLayer)?
        if let backing = header.backing {
            guard let layer = layers.first else {
                throw ImageFailure(image.path, .damaged("its backing file has changed"))
            }
            below =
                try isQcow2(layer, backing.format, below: image.path)
                ? try map(layer, on: layers.dropFirst(), readOnly: true)
                : HostImageFile(layer.descriptor, size: layer.size)
        }
        // It may have grown since it was opened.
        let file = HostImageFile(image.descriptor, size: image.bytesNow)
        do throws(Qcow2Fault) {
            return try Qcow2Map(header, file: file, backing: below, readOnly: readOnly)
        } catch { throw ImageFailure(image.path, fault: error) }
    }

    /// The file that the header of `image` calls `name`.
    private static func path(of name: String, below image: String) throws(ImageFailure) -> String {
        let name = name.hasPrefix("file:") ? String(name.dropFirst(5)) : name
        guard !name.hasPrefix("json:"), !name.contains("://"), !name.hasPrefix("nbd:") else {
            throw ImageFailure(image, .lacking("the backing file \(name)"))
        }
        guard !name.hasPrefix("/"), let slash = image.lastIndex(of: "/") else { return name }
        return image[...slash] + name
    }

    /// Whether `layer` is one more qcow2 image, and not raw, by what the image above it says.
    private static func isQcow2(
        _ layer: OpenedImage, _ format: String?, below image: String
    ) throws(ImageFailure) -> Bool {
        switch format {
        case "qcow2": return true
        case "raw", "file", "host_device": return false
        case nil where try !layer.hasMagic(Qcow2Header.magic): return false
        case nil:
            let what = "a backing file without a stated format (qemu-img rebase -u -F states it)"
            throw ImageFailure(image, .lacking(what))
        case let format?: throw ImageFailure(layer.path, .unsupported(format: format))
        }
    }
}

extension ImageFailure {
    init(_ path: String, fault: Qcow2Fault) {
        switch fault {
        case .unsupported(let what): self.init(path, .lacking(what))
        case .damaged(let what): self.init(path, .damaged(what))
        case .unclean: self.init(path, .unclean)
        case .host(let code): self.init(path, .unreadable(code))
        }
    }
}
