// The back end of a domain's PV console.
// Source: Xen's public/io/console.h (struct xencons_interface, indices behind the two rings).
// Modelled: both directions, scroll-back, bounded queues. Not modelled: flex rings (PV calls), terminal sizes.
// Quirks: the page's indices are this end's only state, so a console that starts anew goes on where the last one was.
internal import CXen
public import Rings

/// One console. Everything happens on one thread.
@safe public final class ConsoleBackend {
    /// Bytes taken from the guest in one go.
    static let budget = 16_384
    /// Bytes that may wait for a guest that does not read.
    static let typedLimit = 1 << 20

    /// Keeps the page.
    private let memory: DomainMemory
    private let output: ByteRing
    private let input: ByteRing
    private let port: any EventPort
    private var typed: [UInt8] = []
    public private(set) var history: ScrollBack
    /// Whether the page's indices made sense the last time.
    public private(set) var isSane = true
    /// What the guest has written.
    public var onOutput: ([UInt8]) -> Void = { _ in }
    /// Called when `turn` has something to do.
    public var onWork: () -> Void = {}

    /// The console page is the domain's frame `frame`; nil if that is not RAM.
    public init?(memory: DomainMemory, frame: UInt64, port: any EventPort, history bytes: Int = 1 << 16) {
        guard let page = unsafe memory.page(frame) else { return nil }
        let (inSize, outSize) = (1024, 2048)
        let indices = inSize + outSize
        unsafe input = ByteRing(page: page, data: 0, size: inSize, consumer: indices, producer: indices + 4)
        unsafe output = ByteRing(
            page: page, data: inSize, size: outSize, consumer: indices + 8, producer: indices + 12)
        (self.memory, self.port) = (memory, port)
        history = ScrollBack(limit: bytes)
        port.onEvent = { [weak self] in self?.onWork() }
    }

    /// Types on the guest's console. What a guest leaves unread beyond a mebibyte is lost.
    public func type(_ bytes: some Collection<UInt8>) {
        typed += bytes.prefix(max(0, Self.typedLimit - typed.count))
        onWork()
    }

    /// Moves bytes both ways; true if there is more to move at once.
    public func turn() -> Bool {
        do {
            let moved = try takeOutput()
            let given = try giveInput()
            isSane = true
            if moved > 0 || given { port.notify() }
            return moved >= Self.budget
        } catch {
            // The guest has written nonsense into its page; it may still put that right.
            isSane = false
            return false
        }
    }

    private func takeOutput() throws(RingFault) -> Int {
        var moved = 0
        while moved < Self.budget {
            let bytes = try output.read(limit: Self.budget - moved)
            if bytes.isEmpty { break }
            moved += bytes.count
            history.append(bytes)
            onOutput(bytes)
        }
        return moved
    }

    private func giveInput() throws(RingFault) -> Bool {
        guard !typed.isEmpty else { return false }
        let count = try input.write(typed)
        typed.removeFirst(count)
        return count > 0
    }
}
