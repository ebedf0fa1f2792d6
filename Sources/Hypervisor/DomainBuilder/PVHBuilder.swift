// Builds a PVH domain: kernel, modules and hvm_start_info in memory; the vCPU starts in flat 32-bit mode.
// Source: Xen's public/arch-x86/hvm/start_info.h and docs/misc/pvh.pandoc.
internal import CXen

/// Where a PVH domain's first vCPU starts: EIP and EBX.
public struct PVHStart: Equatable, Sendable {
    public var entry: UInt64
    public var startInfo: UInt64
}

/// A range of guest-physical memory as the guest is told of it; types are those of E820.
public struct MemoryMapEntry: Equatable, Sendable {
    public var address: UInt64
    public var size: UInt64
    public var type: UInt32
    public init(address: UInt64, size: UInt64, type: UInt32) {
        (self.address, self.size, self.type) = (address, size, type)
    }
}

public struct PVHBuilder {
    private let kernel: KernelImage
    private let ramdisk: ArraySlice<UInt8>
    private let commandLine: String
    private let entry: UInt64

    /// Checks that `kernel` has a PVH entry point.
    public init(kernel: KernelImage, ramdisk: ArraySlice<UInt8>, commandLine: String) throws(KernelError) {
        guard let entry = kernel.number(XEN_ELFNOTE_PHYS32_ENTRY) else { throw .missingNote("PHYS32_ENTRY") }
        (self.kernel, self.ramdisk, self.commandLine, self.entry) = (kernel, ramdisk, commandLine, entry)
    }

    /// Fills `memory`; `acpi` is the guest-physical address of the RSDP, or 0.
    public func build(
        into memory: inout some DomainMemory, map: [MemoryMapEntry], acpi: UInt64
    ) throws(KernelError) -> PVHStart {
        let page: UInt64 = 4096
        let module = (kernel.end &+ page &- 1) / page * page
        let info = (module &+ UInt64(ramdisk.count) &+ page &- 1) / page * page
        let line = Array(commandLine.utf8) + [0]
        let end = info &+ 1024 &+ UInt64(map.count) * 24 &+ UInt64(line.count)
        guard end <= memory.size else { throw .tooLarge(needed: end, available: memory.size) }
        for segment in kernel.segments { memory.write(segment.bytes, at: segment.address) }
        memory.write(ramdisk, at: module)

        let (moduleList, mapList, lineAddress) = (info + 64, info + 128, info + 1024 + UInt64(map.count) * 24)
        var header: [UInt8] = []
        header.append(UInt32(bitPattern: Int32(truncatingIfNeeded: XEN_HVM_START_MAGIC_VALUE)))
        header.append(UInt32(1))  // version
        header.append(UInt32(0))  // flags
        header.append(UInt32(ramdisk.isEmpty ? 0 : 1))
        header.append(ramdisk.isEmpty ? 0 : moduleList)
        header.append(lineAddress)
        header.append(acpi)
        header.append(mapList)
        header.append(UInt32(truncatingIfNeeded: map.count))
        header.append(UInt32(0))
        memory.write(header[...], at: info)

        var modules: [UInt8] = []
        for field in [module, UInt64(ramdisk.count), 0, 0] { modules.append(field) }
        memory.write(modules[...], at: moduleList)
        var entries: [UInt8] = []
        for entry in map {
            entries.append(entry.address)
            entries.append(entry.size)
            entries.append(entry.type)
            entries.append(UInt32(0))
        }
        memory.write(entries[...], at: mapList)
        memory.write(line[...], at: lineAddress)
        return PVHStart(entry: entry, startInfo: info)
    }
}
