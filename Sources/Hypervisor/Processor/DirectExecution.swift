// Programs of the guest that run by themselves, on the host's processor, in a process that has nothing but their pages.
// Source: our own design after VMware's first (translate kernels, run programs directly); docs/decisions/0010.md.
// Modelled: 64-bit programs; what they are not to see or do brings the engine back, which carries that out.
// Quirks: instructions that the host has and the guest's CPUID does not offer work all the same, AVX-512 among them.

internal import CProcessor
internal import Glibc

/// One vCPU's process, and what it has mapped of the guest's memory.
public final class DirectExecution: @unchecked Sendable {
    // Invariant: all but `process`, which never changes, belongs to the vCPU's thread; others call it out, and ask for its times.
    let process: OpaquePointer
    private let file: MemoryFile
    /// The number of the address space whose pages are mapped, and these by number.
    private var space: UInt32 = 0
    private var pages: [UInt64: Page] = [:]
    /// Pages, and whether all, that are to be unmapped before it runs on.
    private var stale: [UInt64] = []
    private var isAllStale = false
    /// The page tables of the program that is to run by itself.
    private var wanted: UInt64 = 0
    /// What the process is to be told to map, in one call if the next page is its neighbour.
    private var pending: (page: UInt64, count: UInt64, Page)?
    var policy = DirectPolicy()
    /// What the process had used when it stopped last: the program, and the host for it.
    var programTime: UInt64 = 0
    var systemTime: UInt64 = 0
    private var isAttached = false

    private struct Page {
        /// Where it lies in the memory file.
        var offset: UInt64
        /// As in mmap.
        var protection: UInt32
        var isWritable: Bool { protection & UInt32(PROT_WRITE) != 0 }
        var isExecutable: Bool { protection & UInt32(PROT_EXEC) != 0 }
    }

    /// Linux lets a process have 65530 mappings.
    private static let mostPages = 40_000
    /// How many vCPUs of a process may have one: its filter of system calls names them all.
    static let mostProcesses = 32
    /// Pages around a missing one that are mapped with it.
    private static let around: UInt64 = 32

    /// nil: switched off, or the host does not allow it.
    init?(_ file: MemoryFile) {
        if let setting = getenv("APUS_DIRECT_EXECUTION"), String(cString: setting) == "off" { return nil }
        guard let process = apus_direct_start(file.descriptor) else { return nil }
        (self.process, self.file) = (process, file)
    }

    deinit { apus_direct_end(process) }

    /// The process's number, for whoever confines this one.
    public var processNumber: Int32 { apus_direct_pid(process) }
    /// Processor time that programs have used by themselves.
    public var cpuNanoseconds: UInt64 { apus_direct_time(process) }

    // MARK: Who calls it out

    /// Calls a running program out whenever `sleep` returns, which sleeps until the vCPU's attention is wanted. It never ends: for a
    /// thread of its own.
    public func watch(sleeping sleep: () -> Void) -> Never {
        while true {
            let number = apus_direct_number(process)
            let runs = number & 1 == 1
            if runs {
                sleep()
                if apus_direct_number(process) == number { apus_direct_interrupt(process) }
            }
            // The signal may have found the process at work for the host.
            apus_direct_await(process, number, runs ? 1_000_000 : .max)
        }
    }

    /// Calls a program out, if one runs, after the vCPU's attention was called for. From any thread.
    func interrupt() {
        if apus_direct_number(process) & 1 == 1 { apus_direct_interrupt(process) }
    }

    // MARK: Forgetting

    /// The page at `linear` may lead elsewhere from now on.
    func forget(_ linear: UInt64) {
        if pages[linear &>> 12] != nil { drop([linear &>> 12]) }
    }

    /// The same for the part of 2^`shift` bytes around `linear`.
    func forgetPart(_ linear: UInt64, _ shift: UInt64) {
        drop(pages.keys.filter { $0 &>> (shift &- 12) == linear &>> shift })
    }

    func forgetAll() { isAllStale = true }

    private func drop(_ numbers: [UInt64]) {
        for number in numbers { pages[number] = nil }
        stale += numbers
    }

    /// The address space has a new number, and nothing else has changed.
    func rename(_ old: UInt32, _ new: UInt32) {
        if space == old { space = new }
    }

    /// Stores to the page at `host` are to be seen from now on; whether the process could make some.
    func forgetStores(to host: UnsafeMutableRawPointer) -> Bool {
        guard !pages.isEmpty, let offset = offset(of: host) else { return false }
        let stores = pages.filter { $0.value.offset == offset && $0.value.isWritable }
        drop(Array(stores.keys))
        return !stores.isEmpty
    }

    private func offset(of host: UnsafeRawPointer) -> UInt64? {
        guard let base = file.bytes.baseAddress else { return nil }
        let offset = host - UnsafeRawPointer(base)
        return offset >= 0 && offset < file.bytes.count ? UInt64(offset) & ~0xFFF : nil
    }

    // MARK: Running

    /// From the kernel's next return to it, the present program runs by itself.
    func begin(_ cpu: UnsafeMutablePointer<apus_vcpu>) {
        wanted = tables(cpu)
        cpu.pointee.direct = UInt32(APUS_DIRECT_RESTING)
    }

    /// Whether it is the present one.
    func isWanted(_ cpu: UnsafeMutablePointer<apus_vcpu>) -> Bool { wanted == tables(cpu) }

    func tables(_ cpu: UnsafeMutablePointer<apus_vcpu>) -> UInt64 {
        (cpu.isParavirtual ? cpu.pointee.user_cr3 : cpu.pointee.cr3) & 0xF_FFFF_FFFF_F000
    }

    /// How often a program ran by itself until something stopped it.
    public var runs: UInt32 { apus_direct_number(process) / 2 }

    /// Has the process ready for the vCPU's address space; false: that cannot be.
    func prepare(_ cpu: UnsafeMutablePointer<apus_vcpu>) -> Bool {
        if !isAttached {
            guard apus_direct_attach(process) else { return false }
            isAttached = true
        }
        let current = cpu.engine.pointee.spaces.current
        if current != space || isAllStale || pages.count > Self.mostPages {
            guard unmapAll(cpu) else { return false }
        }
        space = current
        for page in stale {
            if apus_direct_room(process) == 0, !apus_direct_change(process) { return false }
            apus_direct_unmap(process, page &<< 12, 4096)
        }
        stale.removeAll(keepingCapacity: true)
        return apus_direct_change(process) && apus_direct_put(process, cpu)
    }

    private func unmapAll(_ cpu: UnsafeMutablePointer<apus_vcpu>) -> Bool {
        isAllStale = false
        stale.removeAll(keepingCapacity: true)
        pages.removeAll(keepingCapacity: true)
        // What was only listed to be unmapped counts, too.
        if cpu.pointee.direct_pages == 0 { return true }
        isAllStale = !apus_direct_unmap_all(process)
        cpu.pointee.direct_pages = isAllStale ? 1 : 0
        return !isAllStale
    }

    /// Maps what an access needs; false: the engine must make it.
    func resolve(_ cpu: UnsafeMutablePointer<apus_vcpu>) -> Bool {
        let (address, rip) = (apus_direct_fault(process), apus_direct_rip(process))
        let number = address &>> 12
        guard isForPrograms(number) else { return false }
        let known = pages[number]
        let isFetch = address &- rip < 16 && known?.isExecutable != true
        // An instruction that stores to its own page would need it in both ways.
        if !isFetch, let known, known.isWritable || known.isExecutable { return false }
        guard let page = look(cpu, number, isFetch: isFetch, isStore: !isFetch && known != nil) else { return false }
        cpu.pointee.direct_pages = 1
        add(number, page)
        if known == nil {
            let first = number & ~(Self.around - 1)
            for other in first..<first + Self.around
            where other != number && pages[other] == nil && isForPrograms(other) {
                if let page = look(cpu, other, isFetch: isFetch, isStore: false) { add(other, page) }
            }
        }
        listPending()
        if apus_direct_change(process) { return true }
        forgetAll()
        return false
    }

    private func isForPrograms(_ number: UInt64) -> Bool {
        let (first, bytes) = (UInt64(APUS_DIRECT_CODE) &>> 12, UInt64(APUS_DIRECT_BYTES) &>> 12)
        return number > 0 && number < (1 << 47 - 1) &>> 12 && number &- first >= bytes
    }

    /// How the guest's tables have a page mapped.
    private func look(
        _ cpu: UnsafeMutablePointer<apus_vcpu>, _ number: UInt64, isFetch: Bool, isStore: Bool
    ) -> Page? {
        let intent = Intent(write: isStore, fetch: isFetch, mode: UInt8(APUS_TLB_USER))
        guard let (host, code, isWritable) = find(cpu, number, intent), let offset = offset(of: host) else {
            return nil
        }
        var page = Page(offset: offset, protection: UInt32(PROT_READ))
        if isFetch {
            let next = find(cpu, number &+ 1, intent)?.host
            guard apus_direct_is_plain(host, next, apus_direct_traps_cpuid(process)) else { return nil }
            page.protection |= UInt32(PROT_EXEC)
        } else if isWritable, code.map({ $0.pointee == 0 }) ?? true {
            page.protection |= UInt32(PROT_WRITE)
        }
        return isStore && !page.isWritable ? nil : page
    }

    /// Where a page lies in RAM, its byte in the code map, and whether a store would be allowed without a further walk.
    private func find(
        _ cpu: UnsafeMutablePointer<apus_vcpu>, _ number: UInt64, _ intent: Intent
    ) -> (host: UnsafePointer<UInt8>, code: UnsafeMutablePointer<UInt8>?, isWritable: Bool)? {
        // A failed walk leaves an exception described; nobody raises it.
        guard let found = try? cpu.walk(number &<< 12, intent),
            let region = cpu.engine.pointee.region(found.physical), region.pointee.isWritable
        else { return nil }
        let within = Int(truncatingIfNeeded: found.physical &- region.pointee.start) & ~0xFFF
        let host = UnsafePointer((region.pointee.host + within).assumingMemoryBound(to: UInt8.self))
        return (host, region.pointee.codeMap.map { $0 + within &>> 12 }, found.isWritable)
    }

    private func add(_ number: UInt64, _ page: Page) {
        pages[number] = page
        if let (first, count, start) = pending, first &+ count == number, start.protection == page.protection,
            start.offset &+ count &<< 12 == page.offset
        {
            pending = (first, count &+ 1, start)
        } else {
            listPending()
            pending = (number, 1, page)
        }
    }

    /// The list is empty when a page is missed, and has room for all around it.
    private func listPending() {
        guard let (first, count, page) = pending else { return }
        pending = nil
        apus_direct_map(process, first &<< 12, count &<< 12, page.protection, page.offset)
    }
}
