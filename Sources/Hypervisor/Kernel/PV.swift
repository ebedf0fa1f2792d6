// A PV domain: kernel, start info and first page tables laid into memory, the first vCPU at the kernel's entry.
// Source: Xen public/xen.h ("Start-of-day memory layout"), public/elfnote.h; tools/libs/guest/xg_dom_x86.c.
// Modelled: 64-bit kernels with ramdisk and command line. Quirks: machine frames are guest frames (decision 0008).

internal import CXen
internal import DomainBuilder
internal import DomainConfig
internal import DomainProcess
internal import Host
internal import Ioreq
internal import Processor

extension Domain {
    /// Loads what the config names; how the first vCPU starts, and what back ends must know.
    func buildPV() throws -> (VCPUStart, SpecialPlaces) {
        guard let kernelPath = config.kernel else { throw SetupFailure("type='pv' needs a kernel") }
        let file = try HostFile.read(kernelPath, limit: 1 << 28)
        let ramdisk = try readRamdisk()
        let (storePort, consolePort) = (
            UInt32(try xen.events.allocateUnbound(remote: 0)), UInt32(try xen.events.allocateUnbound(remote: 0))
        )
        let built: PVStart
        do {
            var target = GuestRAMWriter(domain: self, size: memory.ram.size)
            built = try PVBuilder(
                kernel: try KernelImage(file), ramdisk: ramdisk[...], commandLine: config.commandLine ?? "",
                memory: UInt64(config.memory) << 20
            ).build(
                into: &target, storePort: storePort, consolePort: consolePort, sharedInfoFrame: ramFrames)
            if let page = built.hypercallPage { target.write(HypercallPage.paravirtual[...], at: page) }
        } catch {
            throw SetupFailure("\(kernelPath): \(error)")
        }
        if let known = paravirtual {
            TableRegister(memory: known) { [unowned self] in page($0) }.note(built.pageTableRoot >> 12, level: 4)
        }
        var start = ParavirtualStart()
        start.rip = built.entry
        start.registers[4] = built.stackTop
        start.registers[6] = built.startInfo
        start.kernelStack = built.stackTop
        start.kernelTables = built.pageTableRoot
        let places = SpecialPlaces(
            storeFrame: built.storeFrame, storePort: storePort, consoleFrame: built.consoleFrame,
            consolePort: consolePort)
        return (.paravirtual(start), places)
    }

    var paravirtual: ParavirtualMemory? { memory.map.paravirtual }

    func setFrame(_ machineFrame: UInt64, to frame: UInt64) { memory.setFrame(machineFrame, to: frame) }

    /// Has other vCPUs forget a page, or all, before they run on; none of them does by the time this is over.
    func flush(_ page: UInt64?, of mask: UInt64) {
        let targets = vcpus.filter { mask >> UInt64($0.index) & 1 != 0 }
        for vcpu in targets { vcpu.wantFlush(page) }
        for vcpu in targets { vcpu.awaitFlush() }
    }

    func infoMoved(_ vcpu: Int) { vcpus[vcpu].send(.infoMoved) }
}

extension HypercallPage {
    /// push rcx; push r11; mov eax, n; syscall; pop r11; pop rcx; ret. iret takes a frame that begins like that.
    static var paravirtual: [UInt8] {
        var page: [UInt8] = []
        for number in 0..<entries {
            var entry: [UInt8] = [0x51, 0x41, 0x53]
            if number == 23 { entry.append(0x50) }
            entry += [0xB8, UInt8(number), 0, 0, 0, 0x0F, 0x05]
            if number != 23 { entry += [0x41, 0x5B, 0x59, 0xC3] }
            page += entry + [UInt8](repeating: 0xCC, count: 32 - entry.count)
        }
        return page
    }
}
