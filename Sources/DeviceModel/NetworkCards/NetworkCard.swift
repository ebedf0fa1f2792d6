// What every emulated network card is to the board.
// Source: docs/decisions/0007.md.
// Modelled: frames in and out with back-pressure.
// Quirks: a card is settled by whoever calls it, like after an access.

public import Ethernet
public import Machine

/// Takes frames for its guest, and gives its guest's.
public protocol NetworkCard: Device {
    /// Whether `receive` would take a frame now.
    var hasRoom: Bool { get }
    /// Takes a frame for the guest, or drops it as the hardware does; false if it has to wait for buffers.
    func receive(_ frame: Frame) -> Bool
    /// The port takes frames again.
    func resume()
    /// The cable was plugged in or pulled.
    func setLink(_ isUp: Bool)
}

/// Where a card's frames go; false if there is no room: the card keeps the frame until `resume`.
public typealias FrameSink = (Frame) -> Bool
