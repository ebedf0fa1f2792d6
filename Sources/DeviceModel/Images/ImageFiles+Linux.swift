// The files of an image, all open: what a process that opens none is given.
// Source: open(2) (O_DIRECT), unix(7) (SCM_RIGHTS), QEMU's docs/interop/qcow2.txt (backing files).
// Modelled: raw and qcow2 images, chains of backing files, and their way to another process.
// Quirks: a lock belongs to the open file, so it travels with the descriptor and outlives who took it.
internal import CAIO
internal import Glibc
public import Host

/// An image and what lies below it, open and locked.
public struct ImageFiles {
    public let format: MediumFormat
    public let readOnly: Bool
    /// Another process of the domain has it locked still; `BlockStore.take` will lock it.
    public let isShared: Bool
    let top: OpenedImage
    /// `top` once more, by O_DIRECT; nil if it is only read, or its file system has no such thing.
    let direct: Descriptor?
    /// What it lies on, from the top down.
    let layers: [OpenedImage]

    public var path: String { top.path }

    /// Opens `path` and whatever its header names as its backing file, and so on.
    public init(
        _ path: String, _ format: MediumFormat, readOnly: Bool, isShared: Bool = false
    ) throws(ImageFailure) {
        (self.format, self.readOnly, self.isShared) = (format, readOnly, isShared)
        top = try OpenedImage(path, readOnly: readOnly, isShared: isShared)
        layers = format == .qcow2 ? try Qcow2Image.openLayers(below: top) : []
        direct = readOnly ? nil : Self.openDirect(path)
    }

    /// A raw disc that somebody else has opened.
    public init(disc descriptor: Descriptor, path: String) throws(ImageFailure) {
        (format, readOnly, isShared, direct, layers) = (.raw, true, false, nil, [])
        top = try OpenedImage(path, descriptor, readOnly: true)
    }

    private static func openDirect(_ path: String) -> Descriptor? {
        let flagDirect: Int32 = 0x4000
        let number = unsafe open(path, O_RDWR | flagDirect | O_CLOEXEC)
        return number < 0 ? nil : Descriptor(owning: number)
    }
}

extension ImageFiles {
    /// What goes with the descriptors to another process: these are of the image, of `direct`, and of the layers.
    public struct Note: Codable, Equatable, Sendable {
        var format: MediumFormat
        var readOnly: Bool
        var isShared: Bool
        var isDirect: Bool
        /// The names of the image and of its layers, for messages.
        var paths: [String]
    }

    /// What is said of an image on its way to the back end of a disk, which the guest knows by `number`.
    public struct Delivery: Codable, Equatable, Sendable {
        public var number: Int
        public var isDisc: Bool
        public var files: Note

        public init(number: Int, isDisc: Bool, files: Note) {
            (self.number, self.isDisc, self.files) = (number, isDisc, files)
        }
    }

    public var note: Note {
        Note(
            format: format, readOnly: readOnly, isShared: isShared, isDirect: direct != nil,
            paths: [path] + layers.map(\.path))
    }

    public var descriptors: [Descriptor] { [top.descriptor] + (direct.map { [$0] } ?? []) + layers.map(\.descriptor) }

    /// Takes what another process has opened; nil if note and descriptors do not fit together.
    public init?(_ note: Note, _ descriptors: [Descriptor]) throws(ImageFailure) {
        guard let path = note.paths.first, descriptors.count == note.paths.count + (note.isDirect ? 1 : 0) else {
            return nil
        }
        (format, readOnly, isShared) = (note.format, note.readOnly, note.isShared)
        top = try OpenedImage(path, descriptors[0], readOnly: readOnly, isShared: isShared)
        direct = note.isDirect ? descriptors[1] : nil
        var layers: [OpenedImage] = []
        for (path, descriptor) in zip(note.paths.dropFirst(), descriptors.dropFirst(note.isDirect ? 2 : 1)) {
            layers.append(try OpenedImage(path, descriptor, readOnly: true))
        }
        self.layers = layers
    }
}
