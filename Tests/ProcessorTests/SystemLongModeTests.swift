// Tests of long mode: activation, interrupts with IST, SYSCALL and SYSRET, MSRs, CPUID.
// Source: Intel SDM vol. 2 and 3; the sentence of each test is the rule.
// Programs are bytes with their mnemonics beside them.

import CProcessor
import Testing

@testable import Processor

@Suite struct SystemLongModeTests {
    @Test func interruptsAlignTheStackAndPushFiveWords() {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.pointee.gpr.4 = Place.kernelStack - 3
        // int 0x40
        guest.run([0xCD, 0x40])
        #expect(guest.vector == 0x40)
        #expect(guest.cpu.pointee.gpr.4 == (Place.kernelStack - 16) - 40)
        #expect(guest.stack64(0) == 0x8002)
        #expect(guest.stack64(1) == UInt64(Selector.code64))
        #expect(guest.stack64(3) == Place.kernelStack - 3)
        #expect(guest.stack64(4) == UInt64(Selector.data32))
    }

    @Test func interruptStacksReplaceTheCurrentOne() {
        let guest = SystemGuest()
        guest.long()
        guest.put(UInt8(1), Place.idt + 6 * 16 + 4)
        // ud2
        guest.run([0x0F, 0x0B])
        #expect(guest.vector == 6)
        #expect(guest.cpu.pointee.gpr.4 == Place.interruptStack - 40)
        #expect(guest.stack64(0) == 0x8000)
    }

    @Test func interruptsFromUserCodeTakeRSP0AndANullStackSegment() {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.run([0xCD, 0x41])
        #expect(guest.vector == 0x41)
        #expect(guest.cpu.pointee.gpr.4 == Place.kernelStack - 40)
        #expect(guest.cpu.segment(2).pointee.selector == 0)
        #expect(guest.stack64(4) == UInt64(Selector.userData64))
    }

    @Test func pageFaultsTellAddressAndKind() {
        let guest = SystemGuest()
        guest.long(user: true)
        // mov [0x7000000], eax
        guest.run([0x89, 0x04, 0x25, 0x00, 0x00, 0x00, 0x07])
        #expect(guest.vector == 14)
        #expect(guest.stack64(0) == 6)
        #expect(guest.stack64(1) == 0x8000)
        #expect(guest.cpu.pointee.cr2 == 0x700_0000)
    }

    @Test func nonCanonicalAddressesAreGeneralProtectionFaults() {
        let guest = SystemGuest()
        guest.long()
        // mov rax, 0x8000000000000000; mov rbx, [rax]
        guest.run([0x48, 0xB8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x48, 0x8B, 0x18])
        #expect(guest.vector == 13)
        #expect(guest.stack64(0) == 0)
    }

    @Test func returnFromInterruptRestoresUserStack() {
        let guest = SystemGuest()
        guest.long()
        guest.put(bytes: [0xCD, 0x81], Place.other)
        for (index, value) in [
            Place.other, UInt64(Selector.userCode64), 0x202, Place.userStack, UInt64(Selector.userData64),
        ].enumerated() {
            guest.put(value, Place.kernelStack - 40 + UInt64(index) * 8)
        }
        guest.cpu.pointee.gpr.4 = Place.kernelStack - 40
        // iretq
        guest.run([0x48, 0xCF])
        #expect(guest.vector == 0x81)
        #expect(guest.stack64(0) == Place.other + 2)
        #expect(guest.stack64(2) & 0x200 != 0)
        #expect(guest.stack64(3) == Place.userStack)
    }

    @Test func baseOfANullSegmentSurvivesTheReturnToUserCode() {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.segment(4).pointee = apus_segment(base: 0x9000, limit: 0, selector: 0, access: 0)
        guest.put(UInt32(0xCAFE), 0x9008)
        // pause; mov eax, fs:[8]; int 0x81
        guest.put(bytes: [0xF3, 0x90, 0x64, 0x8B, 0x04, 0x25, 8, 0, 0, 0, 0xCD, 0x81], Place.other)
        for (index, value) in [
            Place.other, UInt64(Selector.userCode64), 0x202, Place.userStack, UInt64(Selector.userData64),
        ].enumerated() {
            guest.put(value, Place.kernelStack - 40 + UInt64(index) * 8)
        }
        guest.cpu.pointee.gpr.4 = Place.kernelStack - 40
        // iretq
        guest.run([0x48, 0xCF])
        #expect(guest.vector == 0x81)
        #expect(guest.cpu.pointee.gpr.0 == 0xCAFE)
    }

    @Test func syscallAndSysretAreInverse() {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.cpu.pointee.star = UInt64(Selector.code64) << 32 | 0x4B << 48
        guest.cpu.pointee.lstar = Place.other
        guest.cpu.pointee.sfmask = 0x200
        guest.cpu.pointee.system_flags |= 0x200
        // sysretq
        guest.put(bytes: [0x48, 0x0F, 0x07], Place.other)
        // syscall; int 0x90
        guest.run([0x0F, 0x05, 0xCD, 0x90])
        #expect(guest.vector == 0x90)
        #expect(guest.cpu.pointee.gpr.1 == 0x8002)
        #expect(guest.cpu.pointee.gpr.11 & 0x200 != 0)
        #expect(guest.stack64(0) == 0x8004)
        #expect(guest.stack64(1) == UInt64(Selector.userCode64))
        #expect(guest.stack64(4) == UInt64(Selector.userData64))
    }

    @Test func syscallMasksFlagsAndEntersLevelZero() {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.cpu.pointee.star = UInt64(Selector.code64) << 32
        guest.cpu.pointee.lstar = Place.other
        guest.cpu.pointee.sfmask = 0x600
        guest.cpu.pointee.system_flags |= 0x600
        guest.put(bytes: [0xF4], Place.other)
        #expect(guest.run([0x0F, 0x05]) == .halt)
        #expect(guest.cpu.pointee.system_flags & 0x600 == 0)
        #expect(guest.cpu.pointee.cpl == 0)
        #expect(guest.cpu.segment(1).pointee.selector == Selector.code64)
        #expect(guest.cpu.segment(2).pointee.selector == Selector.code64 + 8)
    }

    @Test func swapgsExchangesBases() {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.segment(5).pointee.base = 0x1111
        guest.cpu.pointee.kernel_gs_base = 0x2222
        // swapgs; hlt
        guest.run([0x0F, 0x01, 0xF8, 0xF4])
        #expect(guest.cpu.segment(5).pointee.base == 0x2222)
        #expect(guest.cpu.pointee.kernel_gs_base == 0x1111)
    }

    @Test func longModeStartsWithPagingAndEndsAtTheFarJump() {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.pointee.cr0 = 0x11
        guest.cpu.pointee.efer = 0
        guest.cpu.pointee.cr4 = 0
        guest.cpu.segment(1).pointee = apus_segment(base: 0, limit: .max, selector: 8, access: 0xC09B)
        guest.cpu.updateMode()
        guest.put(bytes: [0x48, 0xC7, 0xC0, 0xFF, 0xFF, 0xFF, 0xFF, 0xF4], Place.other)
        // mov eax, 0x20; mov cr4, eax; mov ecx, 0xC0000080; xor edx, edx; mov eax, 0x100; wrmsr;
        // mov eax, 0x80000011; mov cr0, eax; jmp 0x48:0xA000
        let exit = guest.run([
            0xB8, 0x20, 0, 0, 0, 0x0F, 0x22, 0xE0, 0xB9, 0x80, 0, 0, 0xC0, 0x31, 0xD2, 0xB8, 0, 1, 0, 0, 0x0F, 0x30,
            0xB8, 0x11, 0, 0, 0x80, 0x0F, 0x22, 0xC0, 0xEA, 0x00, 0xA0, 0, 0, 0x48, 0,
        ])
        #expect(exit == .halt)
        #expect(guest.cpu.pointee.efer == 0x500)
        #expect(guest.cpu.pointee.code_size == 8)
        #expect(guest.cpu.pointee.gpr.0 == .max)
    }

    @Test func pagingWithoutPAEIsRefusedWhenLongModeIsEnabled() {
        let guest = SystemGuest()
        guest.protected()
        guest.cpu.pointee.efer = 0x100
        // mov eax, 0x80000011; mov cr0, eax
        guest.run([0xB8, 0x11, 0, 0, 0x80, 0x0F, 0x22, 0xC0])
        #expect(guest.vector == 13)
        #expect(guest.cpu.pointee.cr0 >> 31 == 0)
    }

    @Test func unknownRegistersAreGeneralProtectionFaults() {
        let guest = SystemGuest()
        guest.long()
        // mov ecx, 0x12345; rdmsr
        guest.run([0xB9, 0x45, 0x23, 0x01, 0x00, 0x0F, 0x32])
        #expect(guest.vector == 13)
        #expect(guest.stack64(1) == 0x8005)
    }

    @Test func aHypercallEndsBehindItself() {
        let guest = SystemGuest()
        guest.long()
        // vmcall
        #expect(guest.run([0x0F, 0x01, 0xC1]) == .hypercall)
        #expect(guest.cpu.pointee.rip == 0x8003)
    }

    @Test func theProfileNamesNothingTheEngineLacks() {
        let guest = SystemGuest()
        guest.long()
        // mov eax, 1; cpuid; hlt
        guest.run([0xB8, 1, 0, 0, 0, 0x0F, 0xA2, 0xF4])
        let (ecx, edx) = (guest.cpu.pointee.gpr.1, guest.cpu.pointee.gpr.2)
        // No MONITOR, VMX; a hypervisor; FPU, TSC, MSR, PAE, APIC, SSE2.
        #expect(ecx & (1 << 3 | 1 << 5) == 0)
        #expect(ecx & 1 << 31 != 0)
        #expect(edx & 0x0400_0271 == 0x0400_0271)
    }

    @Test func wideRegistersAreOfferedWithTheirState() {
        let profile = CPUIDProfile.host
        func leaf(_ leaf: UInt32, _ subleaf: UInt32 = 0, xcr0: UInt64 = 7) -> CPUIDResult {
            profile.answer(leaf: leaf, subleaf: subleaf, cr4: 0, xcr0: xcr0)
        }
        let hasAVX = apus_host_features() & UInt32(APUS_HOST_AVX) != 0
        #expect((leaf(1).ecx & 1 << 28 != 0) == hasAVX)
        // FMA and F16C, AVX2, VAES and VPCLMULQDQ, not without AVX; AVX-512 never.
        if !hasAVX { #expect(leaf(1).ecx & (1 << 12 | 1 << 29) == 0 && leaf(7).ebx & 1 << 5 == 0) }
        #expect(leaf(7).ebx & 0xDC23_0000 & ~(1 << 29) & ~(1 << 30) & ~(1 << 20) == 0)
        #expect(leaf(0xD).eax == (hasAVX ? 7 : 3))
        #expect(leaf(0xD, xcr0: 3).ebx == 576)
        #expect(leaf(0xD, xcr0: 7).ebx == 832)
        #expect(leaf(0xD, 2).eax == (hasAVX ? 256 : 0))
    }

    @Test func withoutNumericErrorsTheMachineIsTold() {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.pointee.cr0 &= ~CR0.numericError
        // fninit; push 0x37B (zero divide unmasked); fldcw [rsp]; fld1; fldz; fdivp; fld1; fnstsw ax; fnclex; fld1; hlt
        guest.run([
            0xDB, 0xE3, 0x68, 0x7B, 3, 0, 0, 0xD9, 0x2C, 0x24, 0xD9, 0xE8, 0xD9, 0xEE, 0xDE, 0xF9, 0xD9, 0xE8, 0xDF,
            0xE0, 0xDB, 0xE2, 0xD9, 0xE8, 0xF4,
        ])
        #expect(guest.bus.numericErrors == [true, false])
        #expect(guest.cpu.pointee.gpr.0 & 0x84 == 0x84, "zero divide and the summary are still there")
    }

    @Test func theProcessorsNumberCanBeRead() {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.cpu.pointee.tsc_aux = 0x1234_5678
        // rdpid r9
        guest.run([0xF3, 0x41, 0x0F, 0xC7, 0xF9])
        #expect(guest.cpu.pointee.gpr.9 == 0x1234_5678)
    }

    @Test func vexInstructionsNeedTheirStateEnabled() {
        guard apus_host_features() & UInt32(APUS_HOST_AVX) != 0 else { return }
        // vxorps ymm0, ymm0, ymm0; hlt
        let code: [UInt8] = [0xC5, 0xFC, 0x57, 0xC0, 0xF4]
        func vector(cr4: UInt64, xcr0: UInt64, taskSwitched: Bool = false) -> UInt64? {
            let guest = SystemGuest()
            guest.long()
            guest.cpu.pointee.cr4 |= cr4
            guest.cpu.pointee.xcr0 = xcr0
            if taskSwitched { guest.cpu.pointee.cr0 |= CR0.taskSwitched }
            guest.cpu.updateMode()
            guest.run(code)
            return guest.cpu.pointee.rip == 0x8005 ? nil : guest.vector
        }
        #expect(vector(cr4: 0, xcr0: 7) == 6)
        #expect(vector(cr4: CR4.osXSAVE, xcr0: 3) == 6)
        #expect(vector(cr4: CR4.osXSAVE, xcr0: 7) == nil)
        #expect(vector(cr4: CR4.osXSAVE, xcr0: 7, taskSwitched: true) == 7)
    }

    @Test func timeStampsCanBeKeptFromUserCode() {
        let guest = SystemGuest()
        guest.long(user: true)
        guest.cpu.pointee.cr4 |= 4
        // rdtsc
        guest.run([0x0F, 0x31])
        #expect(guest.vector == 13)
    }

    @Test func externalInterruptsEndAHalt() {
        let guest = SystemGuest()
        guest.long()
        // sti; hlt; then the handler halts
        #expect(guest.run([0xFB, 0xF4]) == .halt)
        #expect(guest.engine.canTakeInterrupt)
        guest.engine.inject(vector: 0x55)
        #expect(guest.engine.run() == .halt)
        #expect(guest.vector == 0x55)
        #expect(guest.stack64(0) == 0x8002)
        #expect(!guest.engine.canTakeInterrupt)
    }
}
