import Host
import Rings
import Testing

@Suite struct GrantTests {
    @Test func `a mapped grant is marked until its last page is released`() throws {
        let domain = try FakeDomain()
        domain.grant(9, frame: 3)
        let first = try domain.grants.map(9, .readOnly)
        #expect(domain.flags(9) == 1 | 8)
        let second = try domain.grants.map(9, .readWrite)
        #expect(domain.flags(9) == 1 | 8 | 16)
        #expect(first.base == domain.page(3).baseAddress)
        second.release()
        #expect(domain.flags(9) == 1 | 8)
        second.release()
        first.release()
        #expect(domain.flags(9) == 1)
        #expect(domain.grants.count == 0)
    }

    @Test func `what is not granted is not mapped`() throws {
        let domain = try FakeDomain()
        domain.grant(1, frame: 3, readOnly: true)
        domain.grant(2, frame: 3, to: 7)
        domain.grant(3, frame: UInt32(FakeDomain.pages))
        domain.grant(4, frame: .max)
        #expect(throws: GrantError.badReference) { try domain.grants.map(4 * 512, .readOnly) }
        #expect(throws: GrantError.badReference) { try domain.grants.map(.max, .readOnly) }
        #expect(throws: GrantError.notGranted) { try domain.grants.map(0, .readOnly) }
        #expect(throws: GrantError.readOnly) { try domain.grants.map(1, .readWrite) }
        #expect(throws: GrantError.notGranted) { try domain.grants.map(2, .readOnly) }
        #expect(throws: GrantError.badFrame) { try domain.grants.map(3, .readWrite) }
        #expect(throws: GrantError.badFrame) { try domain.grants.map(4, .readOnly) }
        #expect([0, 1, 2, 3, 4].allSatisfy { !domain.isMarked($0) })
        let page = try domain.grants.map(1, .readOnly)
        #expect(domain.flags(1) == 5 | 8)
        page.release()
    }

    @Test func `an entry changed while mapped keeps its frame`() throws {
        let domain = try FakeDomain()
        domain.grant(9, frame: 3)
        let first = try domain.grants.map(9, .readWrite)
        domain.table.bytes.storeBytes(of: 4, toByteOffset: 9 * 8 + 4, as: UInt32.self)
        let second = try domain.grants.map(9, .readWrite)
        #expect(first.base == second.base)
    }
}

@Suite struct BackRingTests {
    private func make(_ pages: Int) throws -> (FakeDomain, FakeFrontRing, [GrantedPage]) {
        let domain = try FakeDomain()
        // Frames out of order: nothing relies on neighbours.
        let frames = (0..<pages).map { 100 - $0 * 3 }
        for (index, frame) in frames.enumerated() { domain.grant(8 + index, frame: UInt32(frame)) }
        let front = FakeFrontRing(domain, frames: frames, slotBytes: 112)
        return (domain, front, try (0..<pages).map { try domain.grants.map(UInt32(8 + $0), .readWrite) })
    }

    @Test func `entries cross from page to page`() throws {
        let (_, front, pages) = try make(4)
        var ring = try BackRing(pages: pages, slotBytes: 112)
        #expect(ring.slots == 128 && front.slots == 128)
        for round in 0..<2 {
            for number in 0..<100 {
                front.put((0..<112).map { UInt8(truncatingIfNeeded: $0 &+ number &* 3 &+ round) })
            }
            front.push()
            var bytes = [UInt8](repeating: 0, count: 112)
            for number in 0..<100 {
                #expect(try ring.take(into: &bytes))
                #expect(bytes == (0..<112).map { UInt8(truncatingIfNeeded: $0 &+ number &* 3 &+ round) })
                ring.put([UInt8(number), 1, 2, 3])
            }
            #expect(try !ring.take(into: &bytes))
            let wanted = ring.push()
            #expect(wanted)
            #expect(front.take(4) == (0..<100).map { [UInt8($0), 1, 2, 3] })
        }
    }

    @Test func `an event is sent only when it was asked for`() throws {
        let (_, front, pages) = try make(1)
        var ring = try BackRing(pages: pages, slotBytes: 112)
        var bytes = [UInt8](repeating: 0, count: 112)
        for _ in 0..<3 { front.put([1]) }
        front.setWord(3, 3)
        front.push()
        for expected in [false, false, true] {
            #expect(try ring.take(into: &bytes))
            ring.put([0])
            let wanted = ring.push()
            #expect(wanted == expected)
        }
        let again = ring.push()
        #expect(!again)
        let armed = ring.armForRequests()
        #expect(!armed && front.word(1) == 4)
    }

    @Test func `indices that make no sense are a fault`() throws {
        let (_, front, pages) = try make(1)
        var ring = try BackRing(pages: pages, slotBytes: 112)
        var bytes = [UInt8](repeating: 0, count: 112)
        front.setWord(0, 33)
        #expect(throws: RingFault.tooManyRequests) { _ = try ring.take(into: &bytes) }
        front.setWord(0, .max)
        #expect(throws: RingFault.tooManyRequests) { _ = try ring.take(into: &bytes) }
        front.setWord(0, 32)
        for _ in 0..<32 { #expect(try ring.take(into: &bytes)) }
        #expect(try !ring.take(into: &bytes))
        // Backwards.
        front.setWord(0, 31)
        #expect(throws: RingFault.tooManyRequests) { _ = try ring.take(into: &bytes) }
        front.setWord(0, 33)
        #expect(throws: RingFault.tooManyRequests) { _ = try ring.take(into: &bytes) }
    }

    @Test func `attaching goes on behind the last response`() throws {
        let (_, front, pages) = try make(1)
        front.setWord(2, 0xFFFF_FFFE)
        front.setWord(0, 1)
        var ring = try BackRing(pages: pages, slotBytes: 112)
        var bytes = [UInt8](repeating: 0, count: 112)
        for _ in 0..<3 { #expect(try ring.take(into: &bytes)) }
        #expect(try !ring.take(into: &bytes))
        front.setWord(0, 40)
        #expect(throws: RingFault.tooManyRequests) {
            let ring = try BackRing(pages: pages, slotBytes: 112)
            _ = ring.slots
        }
    }

    @Test func `no page, no ring`() throws {
        #expect(throws: RingFault.tooSmall) { _ = try BackRing(pages: [], slotBytes: 112).slots }
    }
}
