// Media that no disk has yet: those of a config, opened while files can be opened, and those that come with a request.
// Source: docs/decisions/0005.md.
// Modelled: raw and qcow2 images, disks and CDs.
// Quirks: a medium that comes for a disk that waits already takes the other's place.

internal import DomainConfig
internal import Host
internal import Images

/// By the numbers that the guest knows its disks by.
final class WaitingMedia {
    private var media: [Int: (path: String, medium: any BlockStore)] = [:]
    private let reactor: Reactor

    /// Opens the images of all disks that `config` names.
    init(_ config: DomainConfig, on reactor: Reactor) throws(ImageFailure) {
        self.reactor = reactor
        for disk in config.disks where disk.format != .empty {
            // A floppy has no PV form.
            guard let device = VirtualDevice(disk.vdev), device.bus != .fd else { continue }
            // The device model has it until the guest unplugs it.
            let isEmulated = config.kind == .hvm && !disk.cdrom
            let format: MediumFormat = disk.format == .qcow2 ? .qcow2 : .raw
            let files = try ImageFiles(disk.target, format, readOnly: !disk.readWrite, isShared: isEmulated)
            try put(files, isDisc: disk.cdrom, for: device.number)
        }
    }

    func put(_ files: ImageFiles, isDisc: Bool, for number: Int) throws(ImageFailure) {
        media[number] = (files.path, try openMedium(files, for: isDisc ? .cdrom : .disk, on: reactor))
    }

    func isThere(for number: Int) -> Bool { media[number] != nil }

    func take(for number: Int) -> (path: String, medium: any BlockStore)? { media.removeValue(forKey: number) }
}
