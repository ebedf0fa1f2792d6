// Media by the format that a config names.
// Source: xl-disk-configuration(5), "format".
// Modelled: raw and qcow2. Not modelled: qcow, vhd, qed. Quirks: formats are never guessed, since a guest writes its own.

public import Host

public enum MediumFormat: String, Codable, Sendable { case raw, qcow2 }

/// Opens and locks an image.
public func openMedium(
    _ path: String, _ format: MediumFormat, for use: DiskImage.Use, readOnly: Bool, on reactor: Reactor
) throws(ImageFailure) -> any BlockStore {
    try openMedium(try ImageFiles(path, format, readOnly: readOnly), for: use, on: reactor)
}

/// Makes a medium of files that are open.
public func openMedium(
    _ files: ImageFiles, for use: DiskImage.Use, on reactor: Reactor
) throws(ImageFailure) -> any BlockStore {
    switch files.format {
    case .raw: try DiskImage(files, for: use, on: reactor)
    case .qcow2: try Qcow2Image(files, on: reactor)
    }
}
