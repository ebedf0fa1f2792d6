// The picture that the VGA shows, as 32-bit pixels, and what changed since the last look.
// Source: IBM VGA technical reference; Bochs VBE documentation.
// Modelled: see DisplayMode. Changes are found by comparing with the previous frame, so the guest is never trapped.
// Quirks: blinking follows guest time (cursor every 8 frames, characters every 16, as on hardware).

public import Machine
public import VNC

/// Turns the VGA's registers and video memory into a frame buffer.
public final class Screen: Picture {
    static let tile = 64
    static let band = 16

    let vga: VGA
    public private(set) var width = 640
    public private(set) var height = 480
    /// Rows of `width` pixels, 0x00RRGGBB each.
    public private(set) var frame = HostBytes(640 * 480 * 4)
    private var mode: DisplayMode?
    /// Copy of the linear mode's bytes, or of what the cells of a text mode showed.
    var shadow = HostBytes(1)
    var cells: [UInt64] = []
    var fonts = HostBytes(2 * 8192)
    var dirty: [UInt64] = []
    var isFull = true

    private let now: () -> Instant

    /// `now`: guest time.
    public init(_ vga: VGA, now: @escaping () -> Instant = { .zero }) { (self.vga, self.now) = (vga, now) }

    public func refresh() -> PictureUpdate { refresh(at: now()) }

    /// The pixel at a place, black outside.
    public func pixel(_ x: Int, _ y: Int) -> UInt32 {
        guard x >= 0, y >= 0, x < width, y < height else { return 0 }
        return frame.long((y * width + x) * 4) & 0xFF_FFFF
    }

    /// Brings the picture up to date.
    public func refresh(at now: Instant) -> PictureUpdate {
        let next = DisplayMode(vga.state, size: (width, height), memoryBytes: vga.memory.count)
        var update = PictureUpdate()
        if next.width != width || next.height != height {
            (width, height) = (next.width, next.height)
            frame = HostBytes(width * height * 4)
            update.isResized = true
        }
        isFull = isFull || update.isResized || mode.map { !next.looksLike($0) } ?? true
        mode = next
        dirty = [UInt64](repeating: 0, count: (height + Self.band - 1) / Self.band * dirtyStride)
        draw(next, now)
        isFull = false
        update.changed = takeChanges()
        return update
    }

    /// Makes the next refresh report everything.
    public func invalidate() { isFull = true }

    private func draw(_ mode: DisplayMode, _ now: Instant) {
        switch mode.kind {
        case .blank: drawBlank()
        case .linear: drawLinear(mode)
        case .text: drawText(mode, now)
        case .planar, .interleaved, .packed: drawGraphics(mode)
        }
    }

    private func drawBlank() {
        guard isFull else { return }
        for index in 0..<(width * height) { frame.setLong(index * 4, 0) }
        mark(0, 0, width, height)
    }
}

extension Screen {
    private var dirtyStride: Int { (width + Self.tile * 64 - 1) / (Self.tile * 64) }

    /// Notes that pixels of a rectangle changed.
    func mark(_ x: Int, _ y: Int, _ columns: Int, _ rows: Int) {
        guard columns > 0, rows > 0 else { return }
        for band in (y / Self.band)...((y + rows - 1) / Self.band) {
            for tile in (x / Self.tile)...((x + columns - 1) / Self.tile) {
                let index = band * dirtyStride + tile / 64
                if index < dirty.count { dirty[index] |= 1 << UInt64(tile % 64) }
            }
        }
    }

    /// Runs of changed tiles, joined with the same run above.
    private func takeChanges() -> [Rectangle] {
        var done: [Rectangle] = []
        var open: [Rectangle] = []
        let bands = (height + Self.band - 1) / Self.band
        for band in 0..<bands {
            var runs = self.runs(band)
            for index in runs.indices {
                guard
                    let above = open.firstIndex(where: { $0.x == runs[index].x && $0.width == runs[index].width })
                else { continue }
                let joined = open.remove(at: above)
                runs[index].height += joined.height
                runs[index].y = joined.y
            }
            done += open
            open = runs
        }
        return done + open
    }

    private func runs(_ band: Int) -> [Rectangle] {
        var runs: [Rectangle] = []
        let rows = min(Self.band, height - band * Self.band)
        for tile in 0..<((width + Self.tile - 1) / Self.tile) {
            guard dirty[band * dirtyStride + tile / 64] >> UInt64(tile % 64) & 1 != 0 else { continue }
            let x = tile * Self.tile
            let columns = min(Self.tile, width - x)
            if let last = runs.last, last.x + last.width == x {
                runs[runs.count - 1].width += columns
            } else {
                runs.append(Rectangle(x: x, y: band * Self.band, width: columns, height: rows))
            }
        }
        return runs
    }
}
