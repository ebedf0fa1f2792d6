// Two processors on one memory, each on a thread of its own: locked operations, ordering, changed code, page tables.
// Source: Intel SDM vol. 3 §8.1 (atomic operations), §8.1.3 (cross-modifying code), §8.2 (ordering), §4.8 (accessed bit).
// Every program runs by handlers alone, and as translated code.

import CProcessor
import Dispatch
import Testing

@testable import Processor

/// Runs on a thread of its own until HLT.
private struct Runner: @unchecked Sendable {
    // Invariant: one thread uses the guest while it runs.
    let guest: SystemGuest
    func run() -> EngineExit {
        while true {
            let exit = guest.engine.run()
            guard exit == .attention else { return exit }
            _ = apus_atomic_and8(UnsafeMutableRawPointer(guest.attention), 0)
        }
    }
}

@Suite(.serialized) struct SharedMemoryTests {
    private static let data: UInt64 = 0x20_0000
    private static let second: UInt64 = 0x30_0000
    private static let heats: [UInt32] = [0, 1]

    private func little(_ value: UInt64, _ bytes: Int = 4) -> [UInt8] {
        (0..<bytes).map { UInt8(truncatingIfNeeded: value >> UInt64($0 * 8)) }
    }
    /// ModRM, SIB and displacement of an absolute address; `offset` bytes behind `data`.
    private func at(_ offset: UInt64, reg: UInt8 = 0) -> [UInt8] {
        [0x04 | reg << 3, 0x25] + little(Self.data + offset)
    }

    /// Runs a program on each processor; both must halt.
    @discardableResult private func run(
        _ heat: UInt32, _ one: [UInt8], _ two: [UInt8], setUp: (SystemGuest, SystemGuest) -> Void = { _, _ in }
    ) -> (SystemGuest, SystemGuest) {
        let first = SystemGuest()
        let other = SystemGuest(beside: first)
        for (guest, program, place) in [(first, one, Place.code), (other, two, Self.second)] {
            guest.long()
            guest.cpu.engine.pointee.blocks.heat = heat
            guest.put(bytes: program, place)
            guest.cpu.pointee.rip = place
        }
        other.cpu.pointee.gpr.4 = Place.userStack
        setUp(first, other)
        let runners = [Runner(guest: first), Runner(guest: other)]
        DispatchQueue.concurrentPerform(iterations: 2) { index in
            let exit = runners[index].run()
            if exit != .halt { Issue.record("processor \(index): \(exit)") }
        }
        return (first, other)
    }

    @Test("Locked operations of two processors lose nothing", arguments: heats)
    func locked(heat: UInt32) {
        let rounds: UInt64 = 100_000
        let body: [UInt8] =
            [0xF0, 0x48, 0xFF] + at(0)  // lock inc qword
            + [0xB8, 3, 0, 0, 0, 0xF0, 0x48, 0x0F, 0xC1] + at(0x100)  // mov eax, 3; lock xadd
            + [0xF0, 0x83] + at(0x200, reg: 5) + [1]  // lock sub dword, 1
            // mov rax, [..]; lea rbx, [rax + 1]; lock cmpxchg; jnz
            + [0x48, 0x8B] + at(0x300) + [0x48, 0x8D, 0x58, 1, 0xF0, 0x48, 0x0F, 0xB1] + at(0x300, reg: 3) + [
                0x75, 0xE9,
            ]
            // taken: mov eax, 1; xchg; test eax, eax; pause; jnz; inc qword (not locked); mov dword, 0
            + [0xB8, 1, 0, 0, 0, 0x87] + at(0x400) + [0x85, 0xC0, 0xF3, 0x90, 0x75, 0xEE]
            + [0x48, 0xFF] + at(0x408) + [0xC7] + at(0x400) + little(0)
        let loop = body + [0xFF, 0xC9, 0x0F, 0x85] + little(UInt64(bitPattern: Int64(-body.count - 8))) + [0xF4]
        let program = [0xB9] + little(rounds) + loop
        let (guest, _) = run(heat, program, program)
        #expect(guest.get(Self.data, as: UInt64.self) == 2 * rounds)
        #expect(guest.get(Self.data + 0x100, as: UInt64.self) == 6 * rounds)
        #expect(guest.get(Self.data + 0x200, as: UInt32.self) == 0 &- UInt32(2 * rounds))
        #expect(guest.get(Self.data + 0x300, as: UInt64.self) == 2 * rounds)
        #expect(guest.get(Self.data + 0x408, as: UInt64.self) == 2 * rounds, "behind a lock of XCHG")
    }

    @Test("What is stored before a flag is there for whoever sees the flag", arguments: heats)
    func messages(heat: UInt32) {
        let rounds: UInt64 = 200_000
        // inc rcx; mov [data], rcx; mov [flag], rcx; cmp ecx, rounds; jne
        let store: [UInt8] =
            [0x48, 0xFF, 0xC1, 0x48, 0x89] + at(0, reg: 1) + [0x48, 0x89] + at(0x80, reg: 1)
            + [0x81, 0xF9] + little(rounds) + [0x75, 0xE3, 0xF4]
        // mov rax, [flag]; mov rbx, [data]; cmp rbx, rax; jb fail; cmp eax, rounds; jne; hlt; fail: inc dl; hlt
        let load: [UInt8] =
            [0x48, 0x8B] + at(0x80) + [0x48, 0x8B] + at(0, reg: 3) + [0x48, 0x39, 0xC3, 0x72, 8, 0x3D]
            + little(rounds) + [0x75, 0xE4, 0xF4, 0xFE, 0xC2, 0xF4]
        let (_, reader) = run(heat, store, load) { $1.cpu.gpr[2] = 0 }
        #expect(reader.cpu.gpr[2] & 0xFF == 0, "a message was not there behind its flag")
    }

    @Test("Peterson's lock holds: MFENCE keeps a load behind the store before it", arguments: heats)
    func fences(heat: UInt32) {
        let rounds: UInt64 = 20_000
        func program(_ me: UInt64) -> [UInt8] {
            let (mine, other) = (me * 0x40, (1 - me) * 0x40)
            // mov dword [mine], 1; mov dword [turn], other; mfence
            let enter: [UInt8] =
                [0xC7] + at(mine) + little(1) + [0xC7] + at(0x80) + little(1 - me) + [0x0F, 0xAE, 0xF0]
            // wait: pause; cmp dword [other], 0; je in; cmp dword [turn], other; je wait
            let wait: [UInt8] =
                [0xF3, 0x90, 0x83] + at(other, reg: 7) + [0, 0x74, 10, 0x83] + at(0x80, reg: 7)
                + [UInt8(1 - me), 0x74, 0xEA]
            // inc qword [count]; mov dword [mine], 0; dec ecx; jnz
            let leave: [UInt8] = [0x48, 0xFF] + at(0xC0) + [0xC7] + at(mine) + little(0) + [0xFF, 0xC9, 0x0F, 0x85]
            let length = enter.count + wait.count + leave.count + 4
            return [0xB9] + little(rounds) + enter + wait + leave + little(UInt64(bitPattern: Int64(-length))) + [0xF4]
        }
        let (guest, _) = run(heat, program(0), program(1))
        #expect(guest.get(Self.data + 0xC0, as: UInt64.self) == 2 * rounds)
    }

    @Test("Code that another processor changed is new behind a serializing instruction", arguments: heats)
    func crossModifying(heat: UInt32) {
        let rounds: UInt64 = 20_000
        let code = Self.second + 0x800
        // inc ecx; mov [code + 1], ecx (aligned); mov [flag], ecx; cmp ecx, rounds; jne; hlt
        let change: [UInt8] =
            [0xFF, 0xC1, 0x89, 0x0C, 0x25] + little(code + 4) + [0x89] + at(0, reg: 1) + [0x81, 0xF9] + little(rounds)
            + [0x75, 0xE6, 0xF4]
        // mov esi, [flag]; xor eax, eax; cpuid; call code; cmp eax, esi; jb fail; cmp eax, rounds; jne; hlt
        let body: [UInt8] = [0x8B] + at(0, reg: 6) + [0x31, 0xC0, 0x0F, 0xA2, 0xE8]
        let call = little(code + 3 - (Self.second + UInt64(body.count) + 4))
        let check: [UInt8] = [0x39, 0xF0, 0x72, 8, 0x3D] + little(rounds) + [0x75]
        let back = UInt8(bitPattern: Int8(-(body.count + 4 + check.count + 1)))
        let follow = body + call + check + [back, 0xF4, 0x31, 0xFF, 0xF4]
        let (_, runner) = run(heat, change, follow) { first, other in
            first.put(bytes: [0xB8, 0, 0, 0, 0, 0xC3], code + 3)
            other.cpu.gpr[7] = 1
        }
        #expect(runner.cpu.gpr[7] == 1, "old code ran")
        #expect(runner.cpu.gpr[0] == rounds)
    }

    @Test("An entry that is taken away while it is walked stays empty", arguments: heats)
    func accessedBits(heat: UInt32) {
        let rounds: UInt64 = 100_000
        // The page at 0x401000 through a table of its own; its entry is `data + 8`.
        // mov qword [entry], 0x203007; xor eax, eax; xchg; cmp qword [entry], 0 (thrice); jne fail; dec ecx; jnz; hlt
        let take: [UInt8] = [0x48, 0xC7] + at(8) + little(0x20_3007) + [0x31, 0xC0, 0x48, 0x87] + at(8)
        let check: [UInt8] = [0x48, 0x83] + at(8, reg: 7) + [0, 0x75, UInt8(0)]
        var body = take
        for left in [2, 1, 0] as [Int] {
            body += check.dropLast() + [UInt8(left * check.count + 8 + 5)]
        }
        let loop = body + [0xFF, 0xC9, 0x0F, 0x85] + little(UInt64(bitPattern: Int64(-body.count - 8)))
        // mov edx, 7; fail: mov dword [stop], 1; hlt
        let end = [0xBA] + little(7) + [0xC7] + at(0x1000) + little(1) + [0xF4]
        let program = [0xB9] + little(rounds) + loop + end
        // invlpg [0x401000]; mov al, [0x401000]; cmp dword [stop], 0; je
        let touch: [UInt8] =
            [0x0F, 0x01, 0x3C, 0x25] + little(0x40_1000) + [0x8A, 0x04, 0x25] + little(0x40_1000) + [0x83]
            + at(0x1000, reg: 7) + [0, 0x74, 0xE7, 0xF4]
        let (first, _) = run(heat, program, touch) { first, other in
            first.put(UInt64(Self.data + 7), Place.pages + 0x2000 + 16)
            first.put(bytes: Array(repeating: 0, count: 4096), Self.data)
            // #PF: pop the error code, go on behind MOV (7 bytes): add rsp, 8; add qword [rsp], 7; iretq
            let handler: UInt64 = 0x7000
            first.put(bytes: [0x48, 0x83, 0xC4, 8, 0x48, 0x83, 0x04, 0x24, 7, 0x48, 0xCF], handler)
            other.gate(Place.idt + 14 * 16, Selector.code64, handler, type: 0x8E)
            first.cpu.gpr[2] = 0
        }
        #expect(first.cpu.gpr[2] == 7, "the entry was not empty any more")
    }
}
