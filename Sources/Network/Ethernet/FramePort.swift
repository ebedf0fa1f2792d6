// A domain's end of a network: frames come and go, and wait where there is no room.
// Source: docs/decisions/0007.md.
// Modelled: finishing for the receiver, back-pressure both ways, by a reactor's thread.
// Quirks: reading stops as long as the card has no room; the host's side then drops (taps) or waits (user networks).

public import Host

/// One port. `attach` it before use.
public final class FramePort {
    private let socket: FrameSocket
    private weak var reactor: Reactor?
    /// Frames that one message has become, of which the card has not taken all.
    private var waiting: ArraySlice<Frame> = []
    /// What the card can take unfinished.
    public var offloads = Offloads()
    private var isWatchingWrites = false
    private var wantsFrames = true
    /// A frame may have come.
    public private(set) var isReadable = true
    /// The last frame found no room; `onRoom` will be called.
    public private(set) var isFull = false
    public var onFrame: () -> Void = {}
    public var onRoom: () -> Void = {}
    /// The host's end is gone: no frame comes or goes any more.
    public var onEnd: () -> Void = {}

    public init(_ descriptor: Descriptor) { socket = FrameSocket(descriptor) }

    public func attach(to reactor: Reactor) {
        self.reactor = reactor
        watch()
    }

    public func detach() { reactor?.unwatch(socket.descriptor.number) }

    /// The next frame, finished as far as the card needs it. It has a whole Ethernet header, whoever it is from.
    public func receive() -> Frame? {
        while true {
            if let frame = waiting.popFirst() { return frame }
            guard isReadable else { return nil }
            guard let (header, bytes) = socket.receive() else {
                isReadable = false
                if socket.isGone { end() } else { watch() }
                return nil
            }
            guard bytes.count >= Frame.headerBytes else { continue }
            waiting = Frame(bytes, header: FrameHeader(header)).finished(for: offloads)[...]
        }
    }

    private func end() {
        detach()
        onEnd()
    }

    /// Whether the card takes frames now: while it does not, the host is not listened to.
    public func listen(_ wanted: Bool) {
        guard wanted != wantsFrames else { return }
        wantsFrames = wanted
        watch()
    }

    /// Sends one frame; `.full`: keep it until `onRoom`.
    public func send(_ frame: Frame) -> FrameSocket.Outcome { note(socket.send(frame.header.raw, frame.bytes)) }

    /// Sends a frame whose first bytes were copied and whose others lie in the guest's memory.
    @unsafe public func send(
        _ header: FrameHeader, _ start: [UInt8], _ pieces: [UnsafeRawBufferPointer]
    ) -> FrameSocket.Outcome { note(unsafe socket.send(header.raw, start, pieces)) }

    private func note(_ outcome: FrameSocket.Outcome) -> FrameSocket.Outcome {
        if outcome == .full, !isFull {
            isFull = true
            watch()
        }
        return outcome
    }

    private func watch() {
        guard let reactor, !socket.isGone else { return }
        let events = (wantsFrames && !isReadable ? Reactor.readable : 0) | (isFull ? Reactor.writable : 0)
        guard events != 0 else { return reactor.unwatch(socket.descriptor.number) }
        reactor.watch(socket.descriptor.number, for: events) { [weak self] events in self?.notice(events) }
    }

    private func notice(_ events: UInt32) {
        if events & (Reactor.writable | Reactor.hangUp) != 0, isFull {
            isFull = false
            onRoom()
        }
        if events & (Reactor.readable | Reactor.hangUp) != 0 {
            isReadable = true
            onFrame()
        }
        watch()
    }
}
