// Random code that changes itself, and accesses that fault.
// Source: our own choice; both sides leave page 0 to nobody in user mode.
// Made: stores into an instruction a few ahead, loads, stores, read-modify-writes and string operations on page 0.
// Quirks: a fault ends the case.

extension InstructionGenerator {
    /// MOV BYTE [immediate of a MOV ahead], imm8; up to three instructions; that MOV.
    mutating func selfModifying() {
        begin()
        emit(0xC6, 0x05)
        let place = bytes.count
        emit32(0)
        emit(UInt8(random.below(256)))
        let next = bytes.count
        for _ in 0..<random.below(4) { integer() }
        begin()
        emit(0xB0 | UInt8(random.below(4)), 0x11)
        let target = bytes.count - 1
        let value = is64 ? target - next : Int(UserGuest.code) + target
        withUnsafeBytes(of: Int32(truncatingIfNeeded: value)) { bytes.replaceSubrange(place..<place + 4, with: $0) }
    }

    /// An access to page 0.
    mutating func faulting() {
        begin()
        let address = random.below(4000)
        switch random.below(6) {
        case 0: emit(0x8B)
        case 1: emit(0x89)
        case 2: emit(0x01)
        case 3: emit(0x0F, 0x10)
        case 4: emit(0xDD)
        default:
            // XOR EDI, EDI; MOVSB
            emit(0x31, 0xFF, 0xF3, 0xA4)
            return
        }
        emit(0x04, 0x25)
        if !is64 { bytes.replaceSubrange(bytes.count - 2..<bytes.count, with: [0x05]) }
        emit32(address)
    }
}
