// Tests of direct branches to other pages, bound to their targets, when what they were bound by changes.
// Source: Intel SDM vol. 3 §4.10.4 (invalidation), §11.6 (self-modifying code).
// Every program calls a page 3000 times, changes something, and calls it 3000 times more; by handlers alone, too.

import CProcessor
import Testing

@testable import Processor

@Suite struct CrossingTests {
    private static let first: UInt64 = 0x30_0000
    private static let second: UInt64 = 0x30_1000
    private static let otherSpace: UInt64 = 0x11_0000
    /// add eax,1; ret, and add eax,0x10000; ret.
    private static let addOne: [UInt8] = [0x83, 0xC0, 1, 0xC3]
    private static let addMuch: [UInt8] = [5, 0, 0, 1, 0, 0xC3]

    /// Linear 400000 is the first page in the address space of `Place.pages`, the second in the other one.
    private func guest(heat: UInt32) -> SystemGuest {
        let guest = SystemGuest()
        guest.long()
        guest.cpu.engine.pointee.blocks.heat = heat
        guest.cpu.engine.pointee.blocks.trial = 0
        for (top, target) in [(Place.pages, Self.first), (Self.otherSpace, Self.second)] as [(UInt64, UInt64)] {
            guest.mapPage(target, in: top)
        }
        guest.put(bytes: Self.addOne, Self.first)
        guest.put(bytes: Self.addMuch, Self.second)
        // mov ecx,3000; l: call 400000; dec ecx; jnz l; ret
        guest.put(bytes: [0xB9, 0xB8, 0x0B, 0, 0, 0xE8, 0xF6, 0x7E, 0x3F, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xC3], 0x8100)
        return guest
    }

    /// xor eax,eax; call 8100; `change`; call `then`; hlt. Whether any branch was bound is checked, too.
    private func run(_ guest: SystemGuest, heat: UInt32, _ change: [UInt8], then: UInt64 = 0x8100) {
        func call(_ target: UInt64, from place: Int) -> [UInt8] {
            let distance = UInt32(truncatingIfNeeded: Int(target) - Int(Place.code) - place - 5)
            return [0xE8] + (0..<4).map { UInt8(truncatingIfNeeded: distance >> ($0 * 8)) }
        }
        var program: [UInt8] = [0x31, 0xC0]
        program += call(0x8100, from: program.count)
        program += change
        program += call(then, from: program.count)
        guest.run(program + [0xF4])
        guard heat == 1, let translator = guest.cpu.engine.pointee.translator else { return }
        // The first is that of the block which begins with the MOV, and runs once.
        #expect(translator.common.crossings[1].imm > UInt64(Translator.crossingMisses))
    }

    // mov qword [103000], 301007 or 0; invlpg [400000]
    private static func map(_ page: UInt64) -> [UInt8] {
        let entry = (0..<4).map { UInt8(truncatingIfNeeded: page >> ($0 * 8)) }
        return [0x48, 0xC7, 4, 0x25, 0, 0x30, 0x10, 0] + entry + [0x0F, 1, 0x3C, 0x25, 0, 0, 0x40, 0]
    }

    @Test(arguments: [0, 1] as [UInt32]) func anotherPageIsFoundAfterINVLPG(heat: UInt32) {
        let guest = guest(heat: heat)
        run(guest, heat: heat, Self.map(Self.second | 7))
        #expect(guest.cpu.pointee.gpr.0 == 3000 + 3000 << 16)
    }

    @Test(arguments: [0, 1] as [UInt32]) func anotherPageIsFoundAfterCR3(heat: UInt32) {
        let guest = guest(heat: heat)
        // mov ebx,110000; mov cr3,rbx
        run(guest, heat: heat, [0xBB, 0, 0, 0x11, 0, 0x0F, 0x22, 0xDB])
        #expect(guest.cpu.pointee.gpr.0 == 3000 + 3000 << 16)
    }

    @Test(arguments: [0, 1] as [UInt32]) func aPageThatIsGoneFaultsAtItsFirstByte(heat: UInt32) {
        let guest = guest(heat: heat)
        run(guest, heat: heat, Self.map(0))
        #expect(guest.vector == 14)
        #expect(guest.cpu.pointee.cr2 == 0x40_0000)
        #expect(guest.stack64(1) == 0x40_0000)
        #expect(guest.cpu.pointee.gpr.0 == 3000)
    }

    @Test(arguments: [0, 1] as [UInt32]) func codeThatIsWrittenTakesEffect(heat: UInt32) {
        let guest = guest(heat: heat)
        // mov byte [400002],16
        run(guest, heat: heat, [0xC6, 4, 0x25, 2, 0, 0x40, 0, 0x10])
        #expect(guest.cpu.pointee.gpr.0 == 3000 + 3000 << 4)
    }

    @Test(arguments: [0, 1] as [UInt32]) func aPageThatIsMappedTwiceGoesOnBesideItself(heat: UInt32) {
        let guest = guest(heat: heat)
        // 400000 and 402000 are one page, which calls what lies behind it.
        guest.put(bytes: [0xE8, 0xFB, 0x0F, 0, 0, 0xC3], Self.first)
        guest.put(bytes: Self.addOne, Self.second)
        guest.put(bytes: Self.addMuch, 0x30_2000)
        for (number, page) in [Self.first, Self.second, Self.first, 0x30_2000].enumerated() {
            guest.put(page | 7, Place.pages + 0x3000 + UInt64(number) * 8)
        }
        // mov ecx,3000; l: call 402000; dec ecx; jnz l; ret
        guest.put(bytes: [0xB9, 0xB8, 0x0B, 0, 0, 0xE8, 0xF6, 0x9D, 0x3F, 0, 0xFF, 0xC9, 0x75, 0xF7, 0xC3], 0x8200)
        run(guest, heat: heat, [], then: 0x8200)
        #expect(guest.cpu.pointee.gpr.0 == 3000 + 3000 << 16)
    }

    @Test func afterItsTrialABlockIsReachedByItsNewTranslationAlone() {
        let guest = guest(heat: 1)
        guest.cpu.engine.pointee.blocks.trial = 20
        run(guest, heat: 0, [])
        let entry = guest.cpu.jumpSet(0x40_0000)
        #expect(guest.cpu.pointee.gpr.0 == 6000)
        #expect(entry.pointee.linear == 0x40_0000)
        #expect(entry.pointee.block?.pointee.trial == 0)
        #expect(entry.pointee.native != nil)
        #expect(entry.pointee.native == entry.pointee.block?.pointee.native.map { UnsafeRawPointer($0) })
    }

    @Test func branchesThatWereBoundGoWithAFullCodeCache() {
        let guest = guest(heat: 1)
        let engine = guest.cpu.engine
        engine.pointee.translator?.deallocate()
        engine.pointee.translator = Translator(&engine.pointee.blocks, bytes: 96 << 10)
        engine.pointee.blocks.heat = 1
        // Of each function: mov ecx,100; l: call 400000; dec ecx; jnz l; ret. The program calls all of them, twice.
        var program: [UInt8] = [0x31, 0xC0, 0xBB, 2, 0, 0, 0]
        let start = program.count
        for number in 0..<200 {
            let place = 0x1_0000 + number * 16
            let distance = UInt32(truncatingIfNeeded: 0x40_0000 - place - 10)
            let bytes = (0..<4).map { UInt8(truncatingIfNeeded: distance >> ($0 * 8)) }
            guest.put(bytes: [0xB9, 100, 0, 0, 0, 0xE8] + bytes + [0xFF, 0xC9, 0x75, 0xF7, 0xC3], UInt64(place))
            let call = UInt32(truncatingIfNeeded: place - Int(Place.code) - program.count - 5)
            program += [0xE8] + (0..<4).map { UInt8(truncatingIfNeeded: call >> ($0 * 8)) }
        }
        let back = UInt32(truncatingIfNeeded: start - program.count - 8)
        program += [0xFF, 0xCB, 0x0F, 0x85] + (0..<4).map { UInt8(truncatingIfNeeded: back >> ($0 * 8)) } + [0xF4]
        guest.run(program)
        #expect(guest.cpu.pointee.gpr.0 == 40000)
        let blocks = (0..<engine.pointee.blocks.blockCount).map { engine.pointee.blocks.blocks[$0] }
        #expect(blocks.filter { $0.native != nil }.count < blocks.filter { $0.bytes > 0 }.count * 3 / 4)
    }
}
