// A PVH domain: kernel and tables laid into memory, the first vCPU at the kernel's PVH entry.
// Source: Xen docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h.
// Modelled: direct boot with ramdisk and command line; local APICs; ACPI with reduced hardware.
// Quirks: there is no device model; what is not RAM reads as ones and takes no writes.

internal import CXen
internal import DomainBuilder
internal import DomainConfig
internal import DomainProcess
internal import Host
internal import Ioreq

extension Domain {
    /// Loads what the config names; the registers of the first vCPU.
    func buildPVH() throws -> FlatStart {
        guard let kernelPath = config.kernel else { throw SetupFailure("type='pvh' needs a kernel") }
        let file = try HostFile.read(kernelPath, limit: 1 << 28)
        let ramdisk = try readRamdisk()
        let map = GuestMap(memory.ram)
        let kernel: KernelImage
        let start: PVHStart
        do {
            kernel = try KernelImage(file)
            var target = GuestRAMWriter(domain: self, size: map.tables)
            let tables = ACPITables(vcpus: config.vcpus, address: map.tables)
            target.write(tables.bytes[...], at: map.tables)
            let entries = map.entries.map { MemoryMapEntry(address: $0.address, size: $0.size, type: $0.type) }
            start = try PVHBuilder(kernel: kernel, ramdisk: ramdisk[...], commandLine: config.commandLine ?? "")
                .build(into: &target, map: entries, acpi: map.tables)
        } catch {
            throw SetupFailure("\(kernelPath): \(error)")
        }
        var flat = FlatStart(entry: start.entry)
        flat.registers[3] = start.startInfo
        return flat
    }

    /// The file that the config names, if it is whole.
    func readRamdisk() throws -> [UInt8] {
        guard let path = config.ramdisk else { return [] }
        let bytes = try HostFile.read(path, limit: 1 << 30)
        do throws(KernelError) { try Ramdisk.check(bytes[...]) } catch {
            throw SetupFailure("ramdisk \(path): \(error)")
        }
        return bytes
    }

    /// Has the first vCPU begin there.
    func begin(_ start: VCPUStart) { bringUp(0, start) }

    /// Ports and pages of xenstore and console, told to the guest by parameters and grants.
    func bindSpecialPages() throws(XenError) -> SpecialPlaces {
        let map = GuestMap(memory.ram)
        let isHVM = config.kind == .hvm
        let places = SpecialPlaces(
            storeFrame: isHVM ? SpecialFrame.store.guestFrame : map.storeFrame,
            storePort: UInt32(try xen.events.allocateUnbound(remote: 0)),
            consoleFrame: isHVM ? SpecialFrame.console.guestFrame : map.consoleFrame,
            consolePort: UInt32(try xen.events.allocateUnbound(remote: 0)))
        return grantSpecialPages(places)
    }

    func grantSpecialPages(_ places: SpecialPlaces) -> SpecialPlaces {
        xen.parameters[HVM_PARAM_CONSOLE_PFN] = places.consoleFrame
        xen.parameters[HVM_PARAM_CONSOLE_EVTCHN] = UInt64(places.consolePort)
        xen.grants.set(0, frame: places.consoleFrame, domid: 0)
        xen.parameters[HVM_PARAM_STORE_PFN] = places.storeFrame
        xen.parameters[HVM_PARAM_STORE_EVTCHN] = UInt64(places.storePort)
        xen.grants.set(1, frame: places.storeFrame, domid: 0)
        return places
    }
}

/// Guest RAM as the domain builder fills it.
struct GuestRAMWriter: DomainMemory {
    let domain: Domain
    let size: UInt64

    func write(_ bytes: ArraySlice<UInt8>, at address: UInt64) {
        var rest = bytes
        var address = address
        while !rest.isEmpty, let page = domain.page(address >> 12) {
            let offset = Int(address & 0xFFF)
            let count = min(rest.count, 4096 - offset)
            page.write(rest.prefix(count), at: offset)
            rest = rest.dropFirst(count)
            address += UInt64(count)
        }
    }
}
