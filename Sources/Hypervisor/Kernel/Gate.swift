// The gate through which vCPUs enter their engines: it holds them out while the machine changes or is paused.

internal import Host
internal import Synchronization

final class Gate: Sendable {
    /// vCPUs inside their engines.
    private let inside = FutexWord()
    /// Reasons to stay out.
    private let closed = FutexWord()
    /// Lock order: `changing` first of all; nothing else is held when it is taken.
    private let changing = Mutex<Void>(())
    private let callOut: @Sendable () -> Void

    /// `callOut`: makes every vCPU leave its engine soon.
    init(callOut: @escaping @Sendable () -> Void) { self.callOut = callOut }

    /// Waits until the gate is open and goes in.
    func enter() {
        while true {
            inside.add(1)
            let reasons = closed.value
            if reasons == 0 { return }
            inside.subtract(1)
            inside.wake()
            closed.wait(while: reasons)
        }
    }

    func leave() {
        inside.subtract(1)
        if closed.value != 0 { inside.wake() }
    }

    /// Closes the gate and waits until everybody is out. Called from outside.
    func close() {
        closed.add(1)
        while true {
            let count = inside.value
            if count == 0 { return }
            callOut()
            inside.wait(while: count, nanoseconds: 10_000_000)
        }
    }

    func open() {
        closed.subtract(1)
        closed.wake()
    }

    /// Runs `body` while no vCPU is inside. The caller is outside.
    func exclusively(_ body: () -> Void) {
        changing.withLock { _ in
            close()
            body()
            open()
        }
    }
}
