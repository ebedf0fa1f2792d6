// The drives of a board, from the domain's configuration.
// Source: xl-disk-configuration(5), "vdev".
// Modelled: IDE disks and CDs, floppies, raw and qcow2 images. Not modelled: other formats.
// Quirks: a disk that has no place here is for PV drivers only, as on Xen; an HVM domain's xvda...xvdd and sda...sdd are
// the same four IDE positions as hda...hdd.

public import DomainConfig
public import Host
public import Images
public import Storage

/// What sits where before the machine starts.
public struct Drives {
    /// By channel * 2 + unit.
    public var ide: [IDEChannel.Fitting] = [.nothing, .nothing, .nothing, .nothing]
    /// A and B.
    public var floppies: [FDC82077.Fitting] = [.nothing, .nothing]
    /// Images to be drained before the process ends.
    public private(set) var images: [any BlockStore] = []

    public init() {}

    /// Opens every image that `config` names; all that is wrong with one of them is thrown.
    public init(_ config: DomainConfig, on reactor: Reactor) throws {
        for disk in config.disks {
            switch DrivePlace(disk.vdev) {
            case .ide(let channel, let unit):
                let position = channel * 2 + unit
                guard case .nothing = ide[position] else {
                    throw SetupFailure("\(disk.vdev) takes a place on the IDE cables that another disk has")
                }
                ide[position] = try fitting(disk, reactor)
            case .floppy(let drive):
                let readOnly = !disk.readWrite
                floppies[drive] = .drive(try image(disk, .floppy, readOnly: readOnly, reactor))
            // No place on the cables: a disk for PV drivers only.
            case nil: continue
            }
        }
    }

    /// Positions whose disks have more than the 504 MiB that BIOS geometry reaches untranslated.
    var largeDisks: Set<Int> {
        Set(
            ide.indices.filter {
                guard case .disk(let store) = ide[$0] else { return false }
                return store.size > 1024 * 16 * 63 * 512
            })
    }

    private mutating func fitting(_ disk: DomainConfig.Disk, _ reactor: Reactor) throws -> IDEChannel.Fitting {
        if disk.cdrom {
            return .cdrom(try image(disk, .cdrom, readOnly: true, reactor))
        }
        guard let image = try image(disk, .disk, readOnly: !disk.readWrite, reactor) else {
            throw SetupFailure("\(disk.vdev) has no image")
        }
        return .disk(image)
    }

    private mutating func image(
        _ disk: DomainConfig.Disk, _ use: DiskImage.Use, readOnly: Bool, _ reactor: Reactor
    ) throws -> (any BlockStore)? {
        guard !disk.target.isEmpty, disk.format != .empty else { return nil }
        let format: MediumFormat = disk.format == .qcow2 ? .qcow2 : .raw
        let image = try openMedium(disk.target, format, for: use, readOnly: readOnly, on: reactor)
        images.append(image)
        return image
    }
}
