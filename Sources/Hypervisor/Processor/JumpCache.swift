// The jump cache: from linear addresses to blocks and their translations, for the loop and for translated code.
// Source: our own design; docs/decisions/0004.md.
// Modelled: sets of two entries, of which translated code looks at the first in line and at the other out of line.
// Quirks: keys have the number of an address space or of the kernel's; whatever invalidates an entry gives a new one.

internal import CProcessor

extension UnsafeMutablePointer where Pointee == apus_vcpu {
    /// The first of the two entries that an address may have.
    @inline(__always) func jumpSet(_ linear: UInt64) -> UnsafeMutablePointer<apus_jump> {
        self.pointee.jumps + Int(apus_jump_set(linear)) &* Int(APUS_JUMP_WAYS)
    }

    /// What entries of the present mode and address space have as their key.
    @inline(__always) private var jumpKey: UInt64 {
        UInt64(self.pointee.mode_key) | UInt64(self.pointee.jump_generation) &<< 32
    }

    /// The entry of a linear address; its block may have died.
    @inline(__always) func knownJump(_ linear: UInt64) -> UnsafeMutablePointer<apus_jump>? {
        let (set, key) = (jumpSet(linear), jumpKey)
        if set.pointee.linear == linear, set.pointee.key == key { return set }
        let second = set + 1
        return second.pointee.linear == linear && second.pointee.key == key ? second : nil
    }

    /// The block that another address space, or the kernel before its number changed, had at the same address, if it is
    /// the one at `physical`: a fork's programs have all of their parent's.
    @inline(__always) func sameBlock(
        _ set: UnsafeMutablePointer<apus_jump>, _ linear: UInt64, _ physical: UInt64
    ) -> Block? {
        for way in 0..<Int(APUS_JUMP_WAYS) where set[way].linear == linear {
            if let block = set[way].block, block.pointee.physical == physical, block.pointee.bytes != 0,
                block.pointee.mode_key == self.pointee.mode_key, block.pointee.second == 0
            {
                return block
            }
        }
        return nil
    }

    /// Takes a block in as the set's first entry. What that was becomes the second one, unless it belongs to an address
    /// space that is not in use and the second one to one that is.
    @inline(__always) func noteJump(_ set: UnsafeMutablePointer<apus_jump>, _ linear: UInt64, _ block: Block) {
        let key = jumpKey
        let second = set + 1
        if set.pointee.linear != linear || set.pointee.key != key, isInUse(set.pointee) || !isInUse(second.pointee) {
            second.pointee = set.pointee
        }
        set.pointee = apus_jump(
            linear: linear, key: key, block: block,
            native: block.pointee.native.map { UnsafeRawPointer($0) }
                ?? UnsafeRawPointer(bitPattern: engine.pointee.blocks.nativeExit))
    }

    @inline(__always) private func isInUse(_ entry: apus_jump) -> Bool {
        let number = UInt32(truncatingIfNeeded: entry.key &>> 32)
        return number == self.pointee.kernel_jumps || number == self.pointee.user_jumps
    }
}
