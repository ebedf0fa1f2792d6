// Media by the format that a config names.
// Source: xl-disk-configuration(5), "format".
// Modelled: raw and qcow2. Not modelled: qcow, vhd, qed. Quirks: formats are never guessed, since a guest writes its own.

public import Host

public enum MediumFormat: String, Sendable { case raw, qcow2 }

/// Opens and locks an image.
/// - Parameter isShared: another process of the domain has it locked still; `take` will lock it.
public func openMedium(
    _ path: String, _ format: MediumFormat, for use: DiskImage.Use, readOnly: Bool, isShared: Bool = false,
    on reactor: Reactor
) throws(ImageFailure) -> any BlockStore {
    switch format {
    case .raw: try DiskImage(path, for: use, readOnly: readOnly, isShared: isShared, on: reactor)
    case .qcow2: try Qcow2Image(path, readOnly: readOnly, isShared: isShared, on: reactor)
    }
}
