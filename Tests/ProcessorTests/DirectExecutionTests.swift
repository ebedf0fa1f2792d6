// Programs that run by themselves: what brings the engine back, what is forgotten in time, and when it is worth it.
// Source: docs/decisions/0010.md; DifferentialTests compares what they compute.
// Each test sees that the program did run by itself.

import CProcessor
import Glibc
import Testing

@testable import Processor

@Suite(.serialized, .enabled(if: UserGuest.hasAVX)) struct DirectExecutionTests {
    private func make() throws -> (UserGuest, DirectExecution) {
        let user = try UserGuest(direct: true)
        return (user, try #require(user.guest.engine.directExecution))
    }
    private func state(_ set: (inout UserState) -> Void = { _ in }) -> UserState {
        var state = UserState()
        state.gpr[4] = UserGuest.data + 4096
        state.fx.replaceSubrange(24..<28, with: [0x80, 0x1F, 0, 0])
        state.fx.replaceSubrange(0..<2, with: [0x7F, 3])
        set(&state)
        return state
    }
    private let zeros = [UInt8](repeating: 0, count: UserGuest.dataBytes)

    @Test func aLoopRunsByItself() throws {
        let (user, direct) = try make()
        // l: add rax,rcx; mov [rbx],rax; dec rcx; jnz l; int3
        let code: [UInt8] = [0x48, 0x01, 0xC8, 0x48, 0x89, 0x03, 0x48, 0xFF, 0xC9, 0x75, 0xF5, 0xCC]
        let result = user.runInGuest(
            code,
            state {
                $0.gpr[1] = 1_000_000
                $0.gpr[3] = UserGuest.data
            }, zeros)
        #expect(result.vector == 3 && result.rip == UserGuest.code + UInt64(code.count))
        #expect(result.gpr[0] == 500_000_500_000)
        #expect(direct.runs == 1)
        let before = direct.cpuNanoseconds
        #expect(before > 0)
    }

    @Test func whatTellsOfTheHostIsTheEngines() throws {
        let identify: [UInt8] = [0xB8, 0, 0, 0, 0x40, 0x0F, 0xA2, 0xCC]
        let own = try UserGuest().runInGuest(identify, state(), zeros)
        let (user, direct) = try make()
        // rdtsc; shl rdx,32; lea rbx,[rax+rdx]; int3
        let time = user.runInGuest([0x0F, 0x31, 0x48, 0xC1, 0xE2, 32, 0x48, 0x8D, 0x1C, 0x10, 0xCC], state(), zeros)
        #expect(time.gpr[3] > 0 && time.gpr[3] < apus_host_tsc() / 2, "the guest's begins with its processor")
        #expect(direct.runs == 1)
        // CPUID traps, or keeps its page from running at all.
        let leaf = user.runInGuest(identify, state(), zeros)
        #expect(leaf.gpr[0..<4] == own.gpr[0..<4])
    }

    @Test func codeThatTellsOfTheHostIsFound() {
        var page = [UInt8](repeating: 0x90, count: 4096)
        func isPlain(_ bytes: [UInt8], at place: Int, next: [UInt8]? = nil, trapsCPUID: Bool = false) -> Bool {
            var changed = page
            changed.replaceSubrange(place..<place + bytes.count, with: bytes)
            return apus_direct_is_plain(changed, next, trapsCPUID)
        }
        page[100] = 0x0F
        page[101] = 0xB6
        #expect(isPlain([], at: 0))
        // CPUID, XGETBV, SYSENTER, XSAVE, XSAVEC, RDPID; the last bytes of an immediate value do as well.
        for bytes in [
            [0x0F, 0xA2], [0x0F, 1, 0xD0], [0x0F, 0x34], [0x0F, 0xAE, 0x20], [0x0F, 0xC7, 0x21],
            [0xF3, 0x0F, 0xC7, 0xF8],
        ]
            as [[UInt8]]
        {
            #expect(!isPlain(bytes, at: 7), "\(bytes)")
            #expect(!isPlain(bytes, at: 4096 - bytes.count, next: page), "\(bytes)")
        }
        #expect(isPlain([0x0F, 0xA2], at: 7, trapsCPUID: true))
        #expect(!isPlain([0x0F, 1, 0xD0], at: 7, trapsCPUID: true))
        // LFENCE, FXSAVE, CMPXCHG16B, RDRAND, SYSCALL.
        for bytes in [[0x0F, 0xAE, 0xE8], [0x0F, 0xAE, 0x00], [0x0F, 0xC7, 0x09], [0x0F, 0xC7, 0xF0], [0x0F, 5]]
            as [[UInt8]]
        {
            #expect(isPlain(bytes, at: 7), "\(bytes)")
        }
        // Across the end.
        var next = page
        next[0] = 0xA2
        #expect(isPlain([0x0F], at: 4095, next: page))
        #expect(!isPlain([0x0F], at: 4095, next: next))
        #expect(!isPlain([0x0F], at: 4095))
        next[0] = 0x20
        #expect(!isPlain([0x0F, 0xAE], at: 4094, next: next))
    }

    /// Linux has system calls at a fixed address of old, and may carry them out for whoever runs code there.
    @Test func oldSystemCallsAreTheGuests() throws {
        let (user, direct) = try make()
        // mov rax,0xFFFFFFFFFF600000; call rax; int3
        let code: [UInt8] = [0x48, 0xC7, 0xC0, 0, 0, 0x60, 0xFF, 0xFF, 0xD0, 0xCC]
        let result = user.runInGuest(code, state(), zeros)
        #expect(result.vector == 14 && user.guest.cpu.pointee.cr2 == 0xFFFF_FFFF_FF60_0000)
        #expect(result.gpr[4] == UserGuest.data + 4088 && direct.runs == 1)
    }

    @Test func aTrappedStepIsTheGuests() throws {
        let (user, direct) = try make()
        // pushfq; or dword [rsp],0x100; popfq; nop; nop; int3
        let result = user.runInGuest([0x9C, 0x81, 0x0C, 0x24, 0, 1, 0, 0, 0x9D, 0x90, 0x90, 0xCC], state(), zeros)
        #expect(result.vector == 1 && result.rip == UserGuest.code + 10)
        #expect(direct.runs == 1)
    }

    @Test func pagesAreForgottenInTime() throws {
        let (user, direct) = try make()
        let cpu = user.guest.cpu
        // mov rax,[rbx]; int3
        let code: [UInt8] = [0x48, 0x8B, 0x03, 0xCC]
        func read() -> UInt64 {
            user.runInGuest(code, state { $0.gpr[3] = UserGuest.data + 8 }, data).gpr[0]
        }
        var data = zeros
        data[8] = 7
        #expect(read() == 7 && direct.runs == 1)
        cpu.flushPage(UserGuest.data)
        #expect(read() == 7 && direct.runs == 2)
        user.guest.write64(0, at: 0x3000 + 8 * (UserGuest.code >> 21))
        cpu.flushTLB(keepGlobal: false)
        let lost = user.runInGuest(code, state { $0.gpr[3] = UserGuest.data + 8 }, data)
        #expect(lost.vector == 14 && cpu.pointee.cr2 == UserGuest.code)
    }

    @Test func storesToDecodedCodeAreSeen() throws {
        let (user, direct) = try make()
        let cpu = user.guest.cpu
        // mov [rbx],al; int3
        let code: [UInt8] = [0x88, 0x03, 0xCC]
        let set = state {
            $0.gpr[3] = UserGuest.data
            $0.gpr[0] = 0x90
        }
        _ = user.runInGuest(code, set, zeros)
        #expect(direct.runs == 1)
        // The engine decodes something there, so the page is watched from now on.
        enterData(user)
        let generation = cpu.pointee.code_generation
        _ = user.runInGuest(code, set, zeros)
        #expect(direct.runs == 3)
        #expect(cpu.pointee.code_generation != generation)
    }

    /// Runs INT3 from the data page, under the engine.
    private func enterData(_ user: UserGuest) {
        let cpu = user.guest.cpu
        var data = zeros
        data[0] = 0xCC
        _ = user.runInGuest([0xFF, 0xE3], state { $0.gpr[3] = UserGuest.data }, data)
        cpu.pointee.direct = UInt32(APUS_DIRECT_OFF)
    }

    @Test func aKilledProcessEndsTheRun() throws {
        let (user, direct) = try make()
        _ = user.runInGuest([0xCC], state(), zeros)
        kill(direct.processNumber, SIGKILL)
        let cpu = user.guest.cpu
        // Nothing of the program's was in it, so it goes on under the engine.
        #expect(user.runInGuest([0xB8, 7, 0, 0, 0, 0xCC], state(), zeros).gpr[0] == 7)
        #expect(cpu.pointee.direct == UInt32(APUS_DIRECT_OFF))
    }

    @Test func itHasToBeWorthIt() {
        var policy = DirectPolicy()
        var program: UInt64 = 0x1000
        var now: UInt64 = 1_000_000_000
        var departures: UInt32 = 0
        /// Four milliseconds with so many calls.
        func tick(_ calls: UInt32) -> Bool {
            now += 4_000_000
            departures += calls
            return policy.noteInterrupt(of: program, departures: departures, now: now)
        }
        #expect(!tick(0) && tick(3))
        #expect(!tick(1000) && !tick(2) && tick(2))
        func stop(used: UInt64, cost: UInt64) -> Bool { policy.noteStop(stops: 1, used: used, cost: cost) }
        // Long stretches between stops: it goes on; then short ones: at last it does not.
        for _ in 0..<1000 { #expect(stop(used: 200_000, cost: 30_000)) }
        var stops = 0
        while stop(used: 5_000, cost: 30_000) { stops += 1 }
        #expect(stops > 100 && stops < 2000)
        // Now programs are the engine's for some interrupts, and for more of them the next time.
        func pause() -> Int { (1...).first { _ in tick(0) } ?? 0 }
        let first = pause()
        while stop(used: 0, cost: 50_000) {}
        #expect(pause() > first)
        // Another program need not wait for that.
        while stop(used: 0, cost: 50_000) {}
        program = 0x2000
        #expect(pause() == 2)
    }
}
