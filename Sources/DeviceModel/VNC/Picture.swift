// What a VNC server shows: a picture that changes.
// Source: ours.
// Modelled: a frame of 32-bit pixels, and which parts of it have changed. Not modelled: pointers drawn by clients.
// Quirks: the frame moves when the size changes; whoever keeps it looks at `PictureUpdate.isResized`.

/// A rectangle of the screen, in pixels.
public struct Rectangle: Equatable, Sendable {
    public var x, y, width, height: Int
    public init(x: Int, y: Int, width: Int, height: Int) {
        (self.x, self.y, self.width, self.height) = (x, y, width, height)
    }
}

/// What one look at a picture found.
public struct PictureUpdate: Equatable, Sendable {
    /// The picture has another size; its frame moved.
    public var isResized = false
    public var changed: [Rectangle] = []
    public init() {}
}

/// A screen of some guest.
public protocol Picture: AnyObject {
    var width: Int { get }
    var height: Int { get }
    /// Rows of `width` pixels, 0x00RRGGBB each.
    var frame: HostBytes { get }
    /// Brings the frame up to date.
    func refresh() -> PictureUpdate
}
