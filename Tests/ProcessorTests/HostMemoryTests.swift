// Tests of the host's huge pages behind the code cache and guest memory. Whether the host has any does not matter.
// Source: madvise(2).

import CProcessor
import Testing

@testable import Processor

@Suite struct HostMemoryTests {
    private static let huge = Int(APUS_HUGE_PAGE)

    @Test func codeStaysWhereItWasWritten() throws {
        let buffer = apus_code_buffer_make(2 * Self.huge)
        defer { apus_code_buffer_free(buffer) }
        let (writable, executable) = (try #require(buffer.writable), try #require(buffer.executable))
        for place in stride(from: 0, to: 3 * 4096, by: 97) { writable[place] = UInt8(truncatingIfNeeded: place) }
        var end = 0
        while end < 2 * Self.huge {
            let next = Int(apus_code_buffer_populate(buffer, end))
            #expect(next > end)
            end = next
        }
        #expect(apus_code_buffer_populate(buffer, 2 * Self.huge) > 2 * Self.huge)
        for place in stride(from: 0, to: 3 * 4096, by: 97) {
            #expect(executable[place] == UInt8(truncatingIfNeeded: place))
        }
        writable[Self.huge + 5] = 0xC3
        #expect(executable[Self.huge + 5] == 0xC3)
    }

    @Test func guestMemoryStaysWhereverItIsTouched() throws {
        // A memory file, as guest memory is.
        let buffer = apus_code_buffer_make(4 * Self.huge)
        defer { apus_code_buffer_free(buffer) }
        let memory = UnsafeMutableRawPointer(try #require(buffer.writable))
        // A region that begins and ends within huge pages.
        let (start, bytes) = (memory + 0x3000, 4 * Self.huge - 0x5000)
        for place in stride(from: 0, to: bytes, by: 0xFF8) {
            start.storeBytes(of: UInt64(place), toByteOffset: place, as: UInt64.self)
        }
        for place in stride(from: 0, to: bytes, by: 0x8_0000) { apus_huge_touch(start + place, start, bytes) }
        for place in stride(from: 0, to: bytes, by: 0xFF8) {
            #expect(start.load(fromByteOffset: place, as: UInt64.self) == UInt64(place))
        }
    }

    @Test func tablesBeginAtHugePagesAndHoldZeros() {
        let table = apus_huge_allocate(Self.huge + 1)
        defer { apus_huge_free(table, Self.huge + 1) }
        #expect(UInt(bitPattern: table) % UInt(Self.huge) == 0)
        for place in stride(from: 0, to: 2 * Self.huge, by: 4096) {
            #expect(table.load(fromByteOffset: place, as: UInt64.self) == 0)
            table.storeBytes(of: 1, toByteOffset: place + 4088, as: UInt64.self)
        }
    }
}
