// Tests of calls and returns, which translated code makes by the host's own.
// Source: Intel SDM vol. 2 (CALL, RET): a return goes where the stack says, whatever was called.
// Every program runs by handlers alone first, then translated at once; both must end alike.

import Testing

@testable import Processor

extension TranslatorTests {
    @Test func returnsGoWhereTheStackSays() {
        // mov ecx,200; l: call f; add ebx,16; add ebx,1; dec ecx; jnz l; hlt   f: test cl,3; jnz n; add qword [rsp],3; n: ret
        let registers = agree([
            0xB9, 0xC8, 0, 0, 0, 0xE8, 0x0B, 0, 0, 0, 0x83, 0xC3, 0x10, 0x83, 0xC3, 1, 0xFF, 0xC9, 0x75, 0xF1, 0xF4,
            0xF6, 0xC1, 3, 0x75, 5, 0x48, 0x83, 4, 0x24, 3, 0xC3,
        ])
        #expect(registers[3] == 150 * 17 + 50)
    }

    @Test func callsThatOnlyTakeAnAddressAgree() {
        // As kernels branch that fear speculation: mov ecx,200; mov rax,g; l: call thunk; dec ecx; jnz l; hlt
        // thunk: call n; p: pause; jmp p; n: mov [rsp],rax; ret   g: add ebx,ecx; ret
        let registers = agree([
            0xB9, 0xC8, 0, 0, 0, 0x48, 0x8D, 4, 0x25, 0x25, 0x80, 0, 0, 0xE8, 5, 0, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xF4,
            0xE8, 4, 0, 0, 0, 0xF3, 0x90, 0xEB, 0xFC, 0x48, 0x89, 4, 0x24, 0xC3, 1, 0xCB, 0xC3,
        ])
        #expect(registers[3] == 20100)
    }

    @Test func deepCallsReturnOrAreLeftAtOnce() {
        // Deeper than any host predicts; every other time the stack is dropped instead:
        // mov ecx,50; mov rbp,rsp; l: mov edi,100; call f; jmp l
        // f: dec edi; jz o; call f; inc ebx; ret   o: dec ecx; jz d; test cl,1; jz n; ret; n: mov rsp,rbp; jmp l   d: hlt
        let registers = agree([
            0xB9, 0x32, 0, 0, 0, 0x48, 0x89, 0xE5, 0xBF, 0x64, 0, 0, 0, 0xE8, 2, 0, 0, 0, 0xEB, 0xF4, 0xFF, 0xCF, 0x74,
            8, 0xE8, 0xF7, 0xFF, 0xFF, 0xFF, 0xFF, 0xC3, 0xC3, 0xFF, 0xC9, 0x74, 0x0B, 0xF6, 0xC1, 1, 0x74, 1, 0xC3,
            0x48, 0x89, 0xEC, 0xEB, 0xD9, 0xF4,
        ])
        #expect(registers[3] == 25 * 99)
    }

    @Test func aBlockThatIsWrittenBeforeItIsReturnedToTakesEffect() {
        // mov ecx,100; l: call f; add ebx,1; dec ecx; jnz l; hlt   f: mov [l+7],cl; ret
        let registers = agree([
            0xB9, 0x64, 0, 0, 0, 0xE8, 8, 0, 0, 0, 0x83, 0xC3, 1, 0xFF, 0xC9, 0x75, 0xF4, 0xF4, 0x88, 0x0C, 0x25, 0x0C,
            0x80, 0, 0, 0xC3,
        ])
        #expect(registers[3] == 5050)
    }

    @Test func callsAtTheEndOfAPageReturnToTheNext() {
        // mov ecx,100; l: jmp 8FFB; dec ecx; jnz l; hlt   8FFB: call A000; 9000: add ebx,3; jmp back   A000: add ebx,ecx; ret
        let registers = agree(
            [0xB9, 100, 0, 0, 0, 0xE9, 0xF1, 0x0F, 0, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xF4],
            [
                0x8FFB: [0xE8, 0, 0x10, 0, 0, 0x83, 0xC3, 3, 0xE9, 2, 0xF0, 0xFF, 0xFF],
                0xA000: [0x01, 0xCB, 0xC3],
            ])
        #expect(registers[3] == 5050 + 300)
    }
}
