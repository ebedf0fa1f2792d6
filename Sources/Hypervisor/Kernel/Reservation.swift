// Which frames of its RAM a domain has: all that `maxmem` allows, but for those that it gave back or does not have yet.
// Source: Xen xen/common/memory.c; xen/arch/x86/mm/p2m-pod.c (populate on demand).
// Modelled: a PV guest begins with its first frames and asks for more. Another one sees all of its RAM from the start and is
// to give back what exceeds `memory`; until it has, it counts as having that much.
// Quirks: a guest that gives nothing back is not stopped: the host's memory is taken only where the guest writes.

internal import Synchronization

final class Reservation: Sendable {
    private struct State {
        /// A bit for each frame that is not the guest's.
        var gone: [UInt64]
        var count: UInt64 = 0
        /// Frames that the guest has and is to give back.
        var surplus: UInt64 = 0
    }
    private let state: Mutex<State>
    private let frames: UInt64

    /// `frames`: RAM of the domain at most; `initial`: what it is given at first. `isOnDemand`: it sees all of it.
    init(frames: UInt64, initial: UInt64, isOnDemand: Bool) {
        var state = State(gone: [UInt64](repeating: 0, count: Int((frames + 63) / 64)))
        if isOnDemand {
            state.surplus = frames - min(initial, frames)
        } else {
            for frame in min(initial, frames)..<frames { state.gone[Int(frame / 64)] |= 1 << (frame % 64) }
            state.count = frames - min(initial, frames)
        }
        self.frames = frames
        self.state = Mutex(state)
    }

    /// Frames that the guest could have and has not.
    var missing: UInt64 { state.withLock { max($0.count, $0.surplus) } }

    /// The guest gives a frame back; false: it does not have it.
    func remove(_ frame: UInt64) -> Bool {
        guard frame < frames else { return false }
        return state.withLock { state in
            let bit: UInt64 = 1 << (frame % 64)
            guard state.gone[Int(frame / 64)] & bit == 0 else { return false }
            state.gone[Int(frame / 64)] |= bit
            state.count += 1
            if state.count >= state.surplus { state.surplus = 0 }
            return true
        }
    }

    /// The guest gets `1 << order` frames that lie side by side from a multiple of that on, all below `limit`; the first.
    func takeRun(order: Int, below limit: UInt64) -> UInt64? {
        let size = UInt64(1) << UInt64(order)
        return state.withLock { state in
            func isGone(_ frame: UInt64) -> Bool { state.gone[Int(frame / 64)] >> (frame % 64) & 1 != 0 }
            for first in stride(from: 0, to: min(frames, limit) / size * size, by: Int(size)) {
                // Most words of an idle domain's hold nothing.
                if size < 64, first % 64 == 0, state.gone[Int(first / 64)] == 0 { continue }
                guard (first..<first + size).allSatisfy(isGone) else { continue }
                for frame in first..<first + size { state.gone[Int(frame / 64)] &= ~(1 << (frame % 64)) }
                state.count -= size
                return first
            }
            return nil
        }
    }

    /// The guest gets a frame; false: it has it.
    func add(_ frame: UInt64) -> Bool {
        guard frame < frames else { return false }
        return state.withLock { state in
            let bit: UInt64 = 1 << (frame % 64)
            guard state.gone[Int(frame / 64)] & bit != 0 else { return false }
            state.gone[Int(frame / 64)] &= ~bit
            state.count -= 1
            return true
        }
    }
}
