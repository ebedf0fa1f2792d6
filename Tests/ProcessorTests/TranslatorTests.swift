// Tests of translated blocks: loops, calls, links, faults in the middle, code that is written while it runs.
// Source: Intel SDM vol. 3 §6.5 (restart of faults), §8.1.3 and §11.6 (self-modifying code), §4.10.4 (invalidation).
// Every program runs by handlers alone first, then translated at once; both must end alike.

import CProcessor
import Testing

@testable import Processor

/// What a program leaves behind.
private struct Outcome: Equatable {
    var registers: [UInt64]
    var flags: UInt32
    var rip: UInt64
    var data: [UInt8]
}

@Suite struct TranslatorTests {
    /// A segment of 32-bit code that begins at D000.
    private static let based: UInt16 = 0x78

    private func outcome(_ program: [UInt8], heat: UInt32, bits: Int, pieces: [UInt64: [UInt8]]) -> Outcome {
        let guest = SystemGuest()
        switch bits {
        case 64: guest.long()
        case 32: guest.protected()
        default: guest.real()
        }
        guest.describe(Self.based, base: 0xD000, type: 0x93)
        guest.cpu.engine.pointee.blocks.heat = heat
        // As blocks that run often are, or at first.
        guest.cpu.engine.pointee.blocks.trial = heat == 1 ? 0 : 20
        for (address, bytes) in pieces { guest.put(bytes: bytes, address) }
        guest.run(program)
        let cpu = guest.cpu
        return Outcome(
            registers: (0..<16).map { cpu.gpr[$0] }, flags: cpu.pointee.arith_flags, rip: cpu.pointee.rip,
            data: (0..<0x4000).map { guest.get(0xC000 + UInt64($0), as: UInt8.self) })
    }

    /// Runs a program both ways; the registers behind it.
    @discardableResult func agree(
        _ program: [UInt8], _ pieces: [UInt64: [UInt8]] = [:], bits: Int = 64,
        _ location: SourceLocation = #_sourceLocation
    ) -> [UInt64] {
        let expected = outcome(program, heat: 0, bits: bits, pieces: pieces)
        for heat in [1, 3] as [UInt32] {
            let found = outcome(program, heat: heat, bits: bits, pieces: pieces)
            #expect(found == expected, sourceLocation: location)
        }
        return expected.registers
    }

    @Test func loopsCount() {
        // mov ecx,1000; xor eax,eax; l: add rax,rcx; dec ecx; jnz l; hlt
        let registers = agree([0xB9, 0xE8, 3, 0, 0, 0x31, 0xC0, 0x48, 0x01, 0xC8, 0xFF, 0xC9, 0x75, 0xF9, 0xF4])
        #expect(registers[0] == 500_500)
    }

    @Test func loopsInSpilledRegistersCount() {
        // mov r9d,1000; xor r10d,r10d; mov r11,0xC100; l: add r10,r9; mov [r11],r10; add r10d,[r11+4]; dec r9d; jnz l; hlt
        agree([
            0x41, 0xB9, 0xE8, 3, 0, 0, 0x45, 0x31, 0xD2, 0x41, 0xBB, 0, 0xC1, 0, 0, 0x4D, 0x01, 0xCA, 0x4D, 0x89, 0x13,
            0x45, 0x03, 0x53, 0x04, 0x41, 0xFF, 0xC9, 0x75, 0xF1, 0xF4,
        ])
    }

    @Test func loopsThatBorrowRegistersAgreeWithWhatHandlersSee() {
        // mov ecx,300; mov r9d,0xC100; mov r10,1234567890ABCDEF; mov r11d,7; mov r15,42; mov r14,43; l: add r10,r9; rol r10,cl;
        // mov [r9],r10; xor r11d,r10d; movzx eax,r11b; add r11,[r9+4]; cpuid's like: xlatb; mov rdx,[r9+rax]; add r9,16;
        // adc r10d,r11d; dec ecx; jnz l; lea rbx,[r9+r15]; add rbx,r14; hlt
        agree([
            0xB9, 0x2C, 1, 0, 0, 0x41, 0xB9, 0, 0xC1, 0, 0, 0x49, 0xBA, 0xEF, 0xCD, 0xAB, 0x90, 0x78, 0x56, 0x34, 0x12,
            0x41, 0xBB, 7, 0, 0, 0, 0x49, 0xC7, 0xC7, 42, 0, 0, 0, 0x49, 0xC7, 0xC6, 43, 0, 0, 0, 0x4D, 1, 0xCA, 0x49,
            0xD3, 0xC2, 0x4D, 0x89, 0x11, 0x45, 0x31, 0xD3, 0x41, 0x0F, 0xB6, 0xC3, 0x4D, 3, 0x59, 4, 0xD7, 0x49, 0x8B,
            0x14, 1, 0x49, 0x83, 0xC1, 0x10, 0x45, 0x11, 0xDA, 0xFF, 0xC9, 0x75, 0xDC, 0x4B, 0x8D, 0x1C, 0x39, 0x4C, 1,
            0xF3, 0xF4,
        ])
    }

    @Test func loopsThatBorrowTheStackPointerGiveItBack() {
        // Every other register is named: mov ecx,50; mov r9d,3; mov r10d,5; l: add r9,r10; add r10,r9; add r8,r9; xor rax,r8;
        // add rbx,r10; add rdx,rbx; add rsi,rdx; add rdi,rsi; add rbp,rdi; add r12,rbp; add r13,r12; add r14,r13; add r15,r14;
        // add r9,r15; xor r10,r9; dec ecx; jnz l; push r9; pop rcx; hlt
        agree([
            0xB9, 50, 0, 0, 0, 0x41, 0xB9, 3, 0, 0, 0, 0x41, 0xBA, 5, 0, 0, 0, 0x4D, 1, 0xD1, 0x4D, 1, 0xCA, 0x4D, 1,
            0xC8, 0x4C, 0x31, 0xC0, 0x4C, 1, 0xD3, 0x48, 1, 0xDA, 0x48, 1, 0xD6, 0x48, 1, 0xF7, 0x48, 1, 0xFD, 0x49, 1,
            0xEC, 0x4D, 1, 0xE5, 0x4D, 1, 0xEE, 0x4D, 1, 0xF7, 0x4D, 1, 0xF9, 0x4D, 0x31, 0xCA, 0xFF, 0xC9, 0x75, 0xCF,
            0x41, 0x51, 0x59, 0xF4,
        ])
    }

    @Test func loopsThatBorrowRegistersFaultPrecisely() {
        // mov r9d,0xC100; mov r10,1; mov r11d,5; mov r15,77; l: mov [r9],r10; add r10,r11; lea r9,[r9+r9*2]; dec r11d; jnz l; hlt
        // The address triples until it is not mapped. Flags that nobody reads may differ.
        let program: [UInt8] = [
            0x41, 0xB9, 0, 0xC1, 0, 0, 0x49, 0xC7, 0xC2, 1, 0, 0, 0, 0x41, 0xBB, 0x28, 0, 0, 0, 0x49, 0xC7, 0xC7, 77, 0,
            0, 0, 0x4D, 0x89, 0x11, 0x4D, 1, 0xDA, 0x4F, 0x8D, 0x0C, 0x49, 0x41, 0xFF, 0xCB, 0x75, 0xF1, 0xF4,
        ]
        let expected = outcome(program, heat: 0, bits: 64, pieces: [:])
        let found = outcome(program, heat: 1, bits: 64, pieces: [:])
        #expect(expected.registers[11] > 0)
        #expect(found.registers == expected.registers)
        #expect(found.rip == expected.rip)
        // The flags lie on the stack, too, from DFD0 on.
        #expect(found.data.prefix(0x1F00) == expected.data.prefix(0x1F00))
    }

    @Test func aLoopThatBorrowsRegistersAndWritesItselfTakesEffect() {
        // mov r9d,200; mov r11d,l+3; xor r10d,r10d; l: add r10d,1; cmp r9d,100; jne n; mov byte [r11],16; n: dec r9d; jnz l; hlt
        let registers = agree([
            0x41, 0xB9, 200, 0, 0, 0, 0x41, 0xBB, 0x12, 0x80, 0, 0, 0x45, 0x31, 0xD2, 0x41, 0x83, 0xC2, 1, 0x41, 0x83,
            0xF9, 100, 0x75, 4, 0x41, 0xC6, 3, 16, 0x41, 0xFF, 0xC9, 0x75, 0xED, 0xF4,
        ])
        #expect(registers[10] == 101 + 99 * 16)
    }

    @Test func aLoopThatBorrowsRegistersGoesOnInANewTranslation() {
        // Two pages in turn, so that the slot of r9 misses until the block is translated anew, again and again:
        // mov ecx,300000; mov r9d,0xC100; l: mov r10,[r9]; add r10,rcx; mov [r9],r10; xor r9d,0x1000; mov r11,[r9];
        // add r11,r10; dec ecx; jnz l; hlt
        agree([
            0xB9, 0xE0, 0x93, 4, 0, 0x41, 0xB9, 0, 0xC1, 0, 0, 0x4D, 0x8B, 0x11, 0x49, 1, 0xCA, 0x4D, 0x89, 0x11, 0x41,
            0x81, 0xF1, 0, 0x10, 0, 0, 0x4D, 0x8B, 0x19, 0x4D, 1, 0xD3, 0xFF, 0xC9, 0x75, 0xE6, 0xF4,
        ])
    }

    @Test func accessesByOneRegisterShareACheck() {
        // Loads and stores by RSI, R9 and RSP, all of which move between them, walk across pages:
        // mov ecx,600; mov esi,0xC100; mov esp,0xE008; l: mov rax,[rsi]; add rax,[rsi+8]; add rsi,16; mov [rsi-24],rax;
        // lea rsi,[rsi-8]; inc dword [rsi+4]; mov r9,rsi; mov [r9+32],rcx; movzx edx,byte [r9+33]; sub r9,8;
        // add [r9+48],rdx; adc rdx,[r9+56]; push rax; push rdx; mov [rsp+8],rcx; call f; pop rbx; pop rdi; xor rbx,rdi;
        // dec ecx; jnz l; hlt   f: mov r8,[rsp+8]; add r8,[rsp+16]; ret
        agree([
            0xB9, 0x58, 2, 0, 0, 0xBE, 0, 0xC1, 0, 0, 0xBC, 8, 0xE0, 0, 0, 0x48, 0x8B, 6, 0x48, 3, 0x46, 8, 0x48,
            0x83, 0xC6, 0x10, 0x48, 0x89, 0x46, 0xE8, 0x48, 0x8D, 0x76, 0xF8, 0xFF, 0x46, 4, 0x49, 0x89, 0xF1, 0x49,
            0x89, 0x49, 0x20, 0x41, 0x0F, 0xB6, 0x51, 0x21, 0x49, 0x83, 0xE9, 8, 0x49, 1, 0x51, 0x30, 0x49, 0x13,
            0x51, 0x38, 0x50, 0x52, 0x48, 0x89, 0x4C, 0x24, 8, 0xE8, 0x0A, 0, 0, 0, 0x5B, 0x5F, 0x48, 0x31, 0xFB,
            0xFF, 0xC9, 0x75, 0xBD, 0xF4, 0x4C, 0x8B, 0x44, 0x24, 8, 0x4C, 3, 0x44, 0x24, 0x10, 0xC3,
        ])
    }

    @Test func callsReturn() {
        // mov ecx,100; l: call f; call [rip+ptr]...; dec ecx; jnz l; hlt   f: push rbx; add rax,rcx; pop rbx; ret
        let registers = agree(
            [
                0xB9, 100, 0, 0, 0, 0xBA, 0, 0xA0, 0, 0, 0xE8, 0xF1, 0x1F, 0, 0, 0xFF, 0xD2, 0xFF, 0xC9, 0x75, 0xF5,
                0xF4,
            ],
            [0xA000: [0x53, 0x48, 0x01, 0xC8, 0x5B, 0xC3]])
        #expect(registers[0] == 10100)
    }

    @Test func recursionReturns() {
        // mov edi,15; call f; hlt   f: cmp edi,2; jb leaf; push rdi; dec edi; call f; pop rdi; push rax; sub edi,2;
        // call f; pop rdx; add eax,edx; ret   leaf: mov eax,edi; ret
        let registers = agree(
            [0xBF, 15, 0, 0, 0, 0xE8, 0xF6, 0x1F, 0, 0, 0xF4],
            [
                0xA000: [
                    0x83, 0xFF, 2, 0x72, 0x17, 0x57, 0xFF, 0xCF, 0xE8, 0xF3, 0xFF, 0xFF, 0xFF, 0x5F, 0x50, 0x83, 0xEF,
                    2,
                    0xE8, 0xE9, 0xFF, 0xFF, 0xFF, 0x5A, 0x01, 0xD0, 0xC3, 0x90, 0x89, 0xF8, 0xC3,
                ]
            ])
        #expect(registers[0] == 610)
    }

    @Test func displacementsFromRIPReachAllTheWay() {
        // mov ecx,20; l: lea rax,[rip+7FFFFFF0]; lea rbx,[rip+80000000 less 2^32]; lea edx,[rip+7FFFFFFF]; dec ecx; jnz l; hlt
        let registers = agree([
            0xB9, 20, 0, 0, 0, 0x48, 0x8D, 5, 0xF0, 0xFF, 0xFF, 0x7F, 0x48, 0x8D, 0x1D, 0, 0, 0, 0x80, 0x8D, 0x15, 0xFF,
            0xFF, 0xFF, 0x7F, 0xFF, 0xC9, 0x75, 0xE8, 0xF4,
        ])
        #expect(registers[0] == 0x800C + 0x7FFF_FFF0)
        #expect(registers[3] == 0x8013 &- 0x8000_0000)
        #expect(registers[2] == 0x8019 + 0x7FFF_FFFF)
    }

    @Test func flagsLiveAcrossBlocks() {
        // mov ecx,64; mov eax,3; l: shl eax,1; jmp n; n: adc ebx,ebx; inc edx; setc sil; lea rdi,[rdi+rsi]; dec ecx; jnz l; hlt
        agree([
            0xB9, 64, 0, 0, 0, 0xB8, 3, 0, 0, 0, 0xD1, 0xE0, 0xEB, 0, 0x11, 0xDB, 0xFF, 0xC2, 0x40, 0x0F, 0x92, 0xC6,
            0x48,
            0x8D, 0x3C, 0x37, 0xFF, 0xC9, 0x75, 0xEC, 0xF4,
        ])
    }

    @Test func flagsLiveThroughABlockIntoOneThatItJumpsTo() {
        // mov ecx,100; a: add ebx,0x60000000; jmp b; b: dec ecx; jnz x; add edx,edx; hlt   x: adc eax,0; jmp a
        let registers = agree([
            0xB9, 100, 0, 0, 0, 0x81, 0xC3, 0, 0, 0, 0x60, 0xEB, 0, 0xFF, 0xC9, 0x75, 3, 0x01, 0xD2, 0xF4, 0x83, 0xD0,
            0, 0xEB, 0xEC,
        ])
        #expect(registers[0] == 37)
    }

    @Test func carriesLiveAcrossAccessesToMemory() {
        // mov ecx,600; mov esi,0xC100; mov edi,0xC800; mov rax,0x9E3779B97F4A7C15; xor edx,edx; l: adc rax,[rsi];
        // adc [rdi],rax; lea rsi,[rsi+8]; lea rdi,[rdi+8]; dec ecx; jnz l; setc dl; hlt
        agree([
            0xB9, 0x58, 2, 0, 0, 0xBE, 0, 0xC1, 0, 0, 0xBF, 0, 0xC8, 0, 0, 0x48, 0xB8, 0x15, 0x7C, 0x4A, 0x7F, 0xB9,
            0x79, 0x37, 0x9E, 0x31, 0xD2, 0x48, 0x13, 6, 0x48, 0x11, 7, 0x48, 0x8D, 0x76, 8, 0x48, 0x8D, 0x7F, 8, 0xFF,
            0xC9, 0x75, 0xEE, 0x0F, 0x92, 0xC2, 0xF4,
        ])
    }

    @Test func highBytesAreStoredWhereTheyBelong() {
        // mov ecx,20; mov edi,0xC0F9; l: imul eax,ecx,0x1357; mov [rdi],ah; mov [rdi+5],bh; add ebx,eax; inc rdi;
        // dec ecx; jnz l; hlt
        agree([
            0xB9, 20, 0, 0, 0, 0xBF, 0xF9, 0xC0, 0, 0, 0x69, 0xC1, 0x57, 0x13, 0, 0, 0x88, 0x27, 0x88, 0x7F, 5, 0x01,
            0xC3, 0x48, 0xFF, 0xC7, 0xFF, 0xC9, 0x75, 0xEC, 0xF4,
        ])
    }

    @Test func operandsAtTwoRegistersAreFoundInTheirPages() {
        // Loads and stores at [RSI+RCX*8] and [RDI+RDX], which walk across pages and each other's:
        // mov ecx,700; mov esi,0xC0F1; mov edi,0xD7F3; xor edx,edx; l: mov rax,[rsi+rcx*8]; add rax,rcx; mov [rdi+rdx],rax;
        // add [rsi+rcx*8+64],eax; movzx ebx,word [rdi+rdx+1]; cmp [rsi+rcx*4],bl; adc r8,[rdi+rdx-3]; movups xmm1,[rsi+rcx*8];
        // movups [rdi+rdx+17],xmm1; mov rdx,[rsi+rdx]; and edx,0x7FF; dec ecx; jnz l; hlt
        agree([
            0xB9, 0xBC, 2, 0, 0, 0xBE, 0xF1, 0xC0, 0, 0, 0xBF, 0xF3, 0xD7, 0, 0, 0x31, 0xD2, 0x48, 0x8B, 4, 0xCE, 0x48,
            0x01, 0xC8, 0x48, 0x89, 4, 0x17, 0x01, 0x44, 0xCE, 0x40, 0x0F, 0xB7, 0x5C, 0x17, 1, 0x38, 0x1C, 0x8E, 0x4C,
            0x13, 0x44, 0x17, 0xFD, 0x0F, 0x10, 0x0C, 0xCE, 0x0F, 0x11, 0x4C, 0x17, 0x11, 0x48, 0x8B, 0x14, 0x16, 0x81,
            0xE2, 0xFF, 7, 0, 0, 0xFF, 0xC9, 0x75, 0xCD, 0xF4,
        ])
    }

    @Test func faultsInTheMiddleNameTheInstruction() {
        // mov eax,5; mov ecx,7; l: add eax,ecx; dec ecx; mov [rcx*8+0xC000],rax; jnz l; push rax; add ebx,[0x800000]; hlt
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = 1
        guest.run([
            0xB8, 5, 0, 0, 0, 0xB9, 7, 0, 0, 0, 0x01, 0xC8, 0xFF, 0xC9, 0x48, 0x89, 0x04, 0xCD, 0, 0xC0, 0, 0, 0x75,
            0xF2,
            0x50, 0x03, 0x1C, 0x25, 0, 0, 0x80, 0, 0xF4,
        ])
        #expect(guest.vector == 14)
        #expect(guest.cpu.pointee.cr2 == 0x80_0000)
        #expect(guest.stack64(1) == Place.code + 25)
        #expect(guest.cpu.pointee.gpr.0 == 33)
    }

    @Test func storesIntoTheRunningBlockTakeEffectAtOnce() {
        // mov ecx,40; l: mov byte [rip+7],0x00 + cl ... : each round rewrites the immediate of the add behind the store
        // mov ecx,40; l: mov [rip+3],cl; nop; add eax,imm8(0); dec ecx; jnz l; hlt
        let registers = agree([
            0xB9, 40, 0, 0, 0, 0x88, 0x0D, 3, 0, 0, 0, 0x90, 0x83, 0xC0, 0, 0xFF, 0xC9, 0x75, 0xF2, 0xF4,
        ])
        #expect(registers[0] == 820)
    }

    @Test func aLinkedBlockThatIsWrittenIsNotEntered() {
        // mov ecx,50; l: jmp f (same page); back: dec ecx; mov [f+1],ecx; jnz l; hlt   f: mov eax,imm; add ebx,eax; jmp back
        agree(
            [
                0xB9, 50, 0, 0, 0, 0xE9, 0xF6, 0, 0, 0, 0xFF, 0xC9, 0x89, 0x0C, 0x25, 1, 0x81, 0, 0, 0x75, 0xF0, 0xF4,
            ], [0x8100: [0xB8, 1, 0, 0, 0, 0x01, 0xC3, 0xE9, 0xFE, 0xFE, 0xFF, 0xFF]])
    }

    @Test func nonCanonicalTargetsFaultAtTheBranch() {
        // mov rax,1<<63; jmp rax
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = 1
        guest.run([0x48, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0xFF, 0xE0])
        #expect(guest.vector == 13)
        #expect(guest.stack64(1) == Place.code + 10)
    }

    @Test func kernelsOwnInstructionsAgree() {
        // mov ecx,40; mov r9d,77; stac; or cr4,SMAP; l: cli; pushf; sti; swapgs; clac; stac; pushf;
        // bts [C100],r9; lock btc [C100],ecx; btr [C180],rcx; bt [C0F0],esi; mov [rcx+C200],ah; push [rcx+C200]; pop r11 ...
        agree([
            0xB9, 0x28, 0, 0, 0, 0x41, 0xB9, 0x4D, 0, 0, 0, 0x0F, 1, 0xCB, 0x0F, 0x20, 0xE0, 0x0D, 0, 0, 0x20, 0, 0x0F,
            0x22, 0xE0, 0xFA, 0x9C, 0x5B, 0x48, 1, 0xDA, 0xFB, 0x90, 0x9C, 0x5B, 0x48, 0x31, 0xDA, 0x0F, 1, 0xF8, 1,
            0xC8, 0x0F, 1, 0xCA, 0x41, 0x83, 0xD0, 1, 0x8D, 0x71, 8, 0x0F, 1, 0xCB, 0x9C, 0x5B, 0x48, 0x8D, 0x3C, 0x1A,
            0x4C, 0x0F, 0xAB, 0x0C, 0x25, 0, 0xC1, 0, 0, 0x0F, 0x92, 0xC3, 0xF0, 0x0F, 0xBB, 0x0C, 0x25, 0, 0xC1, 0, 0,
            0x48, 0x83, 0xD7, 0, 0x48, 0x0F, 0xB3, 0x0C, 0x25, 0x80, 0xC1, 0, 0, 0x48, 0x11, 0xFF, 0x0F, 0xA3, 0x34,
            0x25, 0xF0, 0xC0, 0, 0, 0x45, 0x11, 0xCA, 0x88, 0xA1, 0, 0xC2, 0, 0, 0xFF, 0xB1, 0, 0xC2, 0, 0, 0x41, 0x5B,
            0x4D, 1, 0xD9, 0x41, 0x81, 0xE1, 0xFF, 1, 0, 0, 0x41, 0x81, 0xE9, 0, 1, 0, 0, 0x0F, 1, 0xF8, 0xFF, 0xC9,
            0x75, 0x85, 0xF4,
        ])
    }

    @Test func anInstructionAcrossPagesThatIsWrittenTakesEffect() {
        // jmp 8FF3; there: mov ecx,40; mov eax,0; l: nop; add eax,0x01020304 (from 8FFE on); mov [9001],cl; dec ecx; jnz l; hlt
        let registers = agree(
            [0xE9, 0xEE, 0x0F, 0, 0],
            [
                0x8FF3: [
                    0xB9, 0x28, 0, 0, 0, 0xB8, 0, 0, 0, 0, 0x90, 5, 4, 3, 2, 1, 0x88, 0x0C, 0x25, 1, 0x90, 0, 0, 0xFF,
                    0xC9, 0x75, 0xEF, 0xF4,
                ]
            ])
        let bytes = (2...40).reduce(2) { $0 + $1 }
        #expect(registers[0] == UInt64(40 * 0x0100_0304 + bytes << 16))
    }

    @Test func attentionEndsAnEndlessLoop() {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = 1
        guest.attention.pointee = 1
        // l: inc eax; jmp l
        #expect(guest.run([0xFF, 0xC0, 0xEB, 0xFC]) == .attention)
    }

    @Test func accessesAcrossPagesAndToTheStackAgree() {
        // mov ecx,20; mov edi,0xCFF9; l: mov [rdi],rcx; add [rdi],ecx; xor rax,[rdi]; push rax; movzx edx,byte[rdi+7];
        // pop rbx; inc rdi; cmovz eax,edx; dec ecx; jnz l; hlt
        agree([
            0xB9, 20, 0, 0, 0, 0xBF, 0xF9, 0xCF, 0, 0, 0x48, 0x89, 0x0F, 0x01, 0x0F, 0x48, 0x33, 0x07, 0x50, 0x0F, 0xB6,
            0x57, 7, 0x5B, 0x48, 0xFF, 0xC7, 0x0F, 0x44, 0xC2, 0xFF, 0xC9, 0x75, 0xE8, 0xF4,
        ])
    }

    @Test func aFullCodeCacheStartsAnew() {
        // mov ecx,40; l: 200 times { inc eax; jmp next; } dec ecx; jnz l; hlt
        var program: [UInt8] = [0xB9, 40, 0, 0, 0]
        for _ in 0..<200 { program += [0xFF, 0xC0, 0x48, 0x89, 0x04, 0x25, 0, 0xC0, 0, 0, 0xEB, 0] }
        program += [0xFF, 0xC9, 0x0F, 0x85]
        withUnsafeBytes(of: Int32(5 - program.count - 4).littleEndian) { program += Array($0) }
        program += [0xF4]
        let guest = SystemGuest()
        guest.long()
        let engine = guest.cpu.engine
        engine.pointee.translator?.deallocate()
        engine.pointee.translator = Translator(&engine.pointee.blocks, bytes: 96 << 10)
        engine.pointee.blocks.heat = 1
        guest.run(program)
        #expect(guest.cpu.pointee.gpr.0 == 8000)
        #expect(guest.cpu.pointee.gpr.1 == 0)
    }

    @Test func addressesOf32BitsAgree() {
        // mov rbx,50000C100; mov rsi,700000004; mov ecx,40; l: mov [ebx],rcx; add rax,[ebx]; mov [ebx+esi*4+10],eax;
        // xor edx,[ebx+esi*4+10]; movups xmm0,[ebx+esi]; movups [ebx+40],xmm0; mov [ebx-C000],edx;
        // lea rdi,[ebx+esi*8+8]; add rax,rdi; mov r8,[ebx]; push qword [ebx+8]; pop r9; dec ecx; jnz l; hlt
        agree([
            0x48, 0xBB, 0, 0xC1, 0, 0, 5, 0, 0, 0, 0x48, 0xBE, 4, 0, 0, 0, 7, 0, 0, 0, 0xB9, 0x28, 0, 0, 0, 0x67, 0x48,
            0x89, 0x0B, 0x67, 0x48, 3, 3, 0x67, 0x89, 0x44, 0xB3, 0x10, 0x67, 0x33, 0x54, 0xB3, 0x10, 0x67, 0x0F, 0x10,
            4, 0x33, 0x67, 0x0F, 0x11, 0x43, 0x40, 0x67, 0x89, 0x93, 0, 0x40, 0xFF, 0xFF, 0x67, 0x48, 0x8D, 0x7C, 0xF3,
            8, 0x48, 1, 0xF8, 0x67, 0x4C, 0x8B, 3, 0x67, 0xFF, 0x73, 8, 0x41, 0x59, 0xFF, 0xC9, 0x75, 0xC6, 0xF4,
        ])
    }

    // MARK: 32-bit code

    @Test func codeOf32BitsAgrees() {
        // mov ecx,60; mov eax,78; mov fs,eax; l: push ecx; push 1234; push esp; pop edx; pop esi; inc esi;
        // mov fs:[ecx*4+20],esi; add edx,fs:[20]; mov fs:[8],edx; mov eax,[C100]; add eax,ecx; mov [C100],eax;
        // mov [C108],al; mov ebx,FFFFF000; xor [ebx+D110],eax; adc edi,[ebx+ecx*4+D114]; pop ecx; call f; push [C110];
        // pushf; pop edx; pop ebp; push ebp; mov ebp,esp; push edi; push esi; pop esi; pop edi; leave; xor edi,edx;
        // bts [C200],ecx; jecxz m; loop l; m: hlt   f: mov eax,[esp+4]; cmp ecx,30; jb g; ret   g: dec edi; mov eax,8B;
        // add eax,8000; jmp eax   808B: bswap edi; mov dl,ah; mov [C10C],dh; ret
        let registers = agree(
            [
                0xB9, 0x3C, 0, 0, 0, 0xB8, 0x78, 0, 0, 0, 0x8E, 0xE0, 0x51, 0x68, 0x34, 0x12, 0, 0, 0x54, 0x5A, 0x5E,
                0x46, 0x64, 0x89, 0x34, 0x8D, 0x20, 0, 0, 0, 0x64, 3, 0x15, 0x20, 0, 0, 0, 0x64, 0x89, 0x15, 8, 0, 0, 0,
                0xA1, 0, 0xC1, 0, 0, 1, 0xC8, 0xA3, 0, 0xC1, 0, 0, 0xA2, 8, 0xC1, 0, 0, 0xBB, 0, 0xF0, 0xFF, 0xFF, 0x31,
                0x83, 0x10, 0xD1, 0, 0, 0x13, 0xBC, 0x8B, 0x14, 0xD1, 0, 0, 0x59, 0xE8, 0x1F, 0, 0, 0, 0xFF, 0x35, 0x10,
                0xC1, 0, 0, 0x9C, 0x5A, 0x5D, 0x55, 0x89, 0xE5, 0x57, 0x56, 0x5E, 0x5F, 0xC9, 0x31, 0xD7, 0x0F, 0xAB,
                0x0D, 0, 0xC2, 0, 0, 0xE3, 2, 0xE2, 0x99, 0xF4, 0x8B, 0x44, 0x24, 4, 0x83, 0xF9, 0x1E, 0x72, 1, 0xC3,
                0x4F, 0xB8, 0x8B, 0, 0, 0, 5, 0, 0x80, 0, 0, 0xFF, 0xE0, 0x0F, 0xCF, 0x88, 0xE2, 0x88, 0x35, 0x0C, 0xC1,
                0, 0, 0xC3,
            ], bits: 32)
        #expect(registers[1] == 0)
        #expect(registers[4] == Place.kernelStack)
    }

    @Test func anInstructionOf32BitCodeAcrossPagesThatIsWrittenTakesEffect() {
        // jmp 8FF3; there: mov ecx,40; mov eax,0; l: nop; add eax,0x01020304 (from 8FFE on); mov [9001],cl; dec ecx; jnz l; hlt
        let registers = agree(
            [0xE9, 0xEE, 0x0F, 0, 0],
            [
                0x8FF3: [
                    0xB9, 0x28, 0, 0, 0, 0xB8, 0, 0, 0, 0, 0x90, 5, 4, 3, 2, 1, 0x88, 0x0D, 1, 0x90, 0, 0, 0x49, 0x75,
                    0xF1, 0xF4,
                ]
            ], bits: 32)
        let bytes = (2...40).reduce(2) { $0 + $1 }
        #expect(registers[0] == UInt64(40 * 0x0100_0304 + bytes << 16))
    }

    @Test(arguments: [false, true]) func limitsOfFSAreKept(translated: Bool) {
        // mov eax,78; mov fs,eax; mov ecx,1FF; l: mov fs:[ecx*8],ecx; inc ecx; jmp l
        let guest = SystemGuest()
        guest.protected()
        guest.describe(Self.based, base: 0xD000, limit: 0x1003, type: 0x93, flags: 4)
        guest.cpu.engine.pointee.blocks.heat = translated ? 1 : 0
        guest.run([
            0xB8, 0x78, 0, 0, 0, 0x8E, 0xE0, 0xB9, 0xFF, 1, 0, 0, 0x64, 0x89, 0x0C, 0xCD, 0, 0, 0, 0, 0x41, 0xEB, 0xF5,
        ])
        #expect(guest.vector == 13)
        #expect(guest.cpu.pointee.gpr.1 == 0x201)
        #expect(guest.get(0xE000, as: UInt32.self) == 0x200)
        #expect(guest.stack32(1) == UInt32(Place.code) + 12)
    }

    // MARK: 16-bit code

    @Test func codeOf16BitsAgrees() {
        // mov ax,C00; mov ds,ax; mov ax,D00; mov es,ax; mov cx,50; mov dx,1234; l: push cx; push 55; push dword 12345678;
        // pop eax; pop bx; mov si,cx; shl si,2; mov [si+100],dx; add dx,es:[bx+si+8]; mov es:[bx+si+8],dx; mov ax,[100];
        // add ax,cx; mov [100],ax; mov [108],ah; lea di,[bx+di-7]; imul bp,dx,77; xor dx,bp; movzx ax,dl; div cl;
        // movsx eax,ax; add [ecx*4+200],eax; mov bx,FFF0; inc [bx+130]; call f; call [300]; mov bx,80; mov ax,83;
        // add ax,8000; mov [300],ax; call ax; pop cx; jcxz m; loop l; m: mov sp,2; push dx; push dx; pop ax; pop bx; hlt
        // f: dec dx; mov bp,sp; add dx,[bp]; ret   8083: enter 4,0; mov [bp-2],dx; leave; ror dx,1; cmp dx,100; jb h; ret
        // h: add dx,3; ret 0
        let registers = agree(
            [
                0xB8, 0, 0x0C, 0x8E, 0xD8, 0xB8, 0, 0x0D, 0x8E, 0xC0, 0xB9, 0x32, 0, 0xBA, 0x34, 0x12, 0x51, 0x6A, 0x55,
                0x66, 0x68, 0x78, 0x56, 0x34, 0x12, 0x66, 0x58, 0x5B, 0x89, 0xCE, 0xC1, 0xE6, 2, 0x89, 0x94, 0, 1, 0x26,
                3, 0x50, 8, 0x26, 0x89, 0x50, 8, 0xA1, 0, 1, 1, 0xC8, 0xA3, 0, 1, 0x88, 0x26, 8, 1, 0x8D, 0x79, 0xF9,
                0x6B, 0xEA, 0x4D, 0x31, 0xEA, 0x0F, 0xB6, 0xC2, 0xF6, 0xF1, 0x66, 0x0F, 0xBF, 0xC0, 0x67, 0x66, 1, 4,
                0x8D, 0, 2, 0, 0, 0xBB, 0xF0, 0xFF, 0xFF, 0x87, 0x30, 1, 0xE8, 0x1F, 0, 0xFF, 0x16, 0, 3, 0xBB, 0x80,
                0, 0xB8, 0x83, 0, 5, 0, 0x80, 0xA3, 0, 3, 0xFF, 0xD0, 0x59, 0xE3, 2, 0xE2, 0x9C, 0xBC, 2, 0, 0x52,
                0x52, 0x58, 0x5B, 0xF4, 0x4A, 0x89, 0xE5, 3, 0x56, 0, 0xC3, 0xC8, 4, 0, 0, 0x89, 0x56, 0xFE, 0xC9, 0xD1,
                0xCA, 0x83, 0xFA, 0x64, 0x72, 1, 0xC3, 0x83, 0xC2, 3, 0xC2, 0, 0,
            ], [0xC300: [0x83, 0x80]], bits: 16)
        #expect(registers[1] == 0)
        #expect(registers[4] & 0xFFFF == 2)
    }

    @Test func branchesOf16BitCodeLeadAroundTheSegment() {
        // mov cx,30; jmp FFF0; FFF0: add ax,cx; dec cx; jmp 8010   8010: jcxz +3; jmp FFF0; hlt
        let registers = agree(
            [0xB9, 30, 0, 0xE9, 0xEA, 0x7F],
            [0xFFF0: [0x01, 0xC8, 0x49, 0xE9, 0x1A, 0x80], 0x8010: [0xE3, 3, 0xE9, 0xDB, 0x7F, 0xF4]], bits: 16)
        #expect(registers[0] & 0xFFFF == 465)
    }
}
