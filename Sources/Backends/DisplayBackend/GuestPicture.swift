// The picture that a guest's frame buffer shows.
// Source: Xen's public/io/fbif.h (struct xenfb_page, page directory, resize); Linux's xen-fbfront (its directory's form).
// Modelled: 8 (as RRRGGGBB), 16 (565), 24 and 32 bits a pixel, any line length, resizing. Not modelled: palettes.
// Quirks: the directory holds frame numbers of the guest, no grants: each is looked up in this guest's memory alone.
// Changes are found by comparing with the picture before, so that it does not matter what the guest tells of them.
public import Rings
public import VNC

/// Where the pixels lie; nothing of it is checked yet.
struct PictureShape: Equatable {
    var width: Int
    var height: Int
    var lineBytes: Int
    var depth: Int
    /// Bytes from the frame buffer's start.
    var offset: Int
}

/// The frame buffer as pages of the guest's memory.
@safe public final class GuestPicture: Picture {
    // Invariant: `pages` point into `memory`, which lives as long as this object.
    public static let largest = (width: 12_800, height: 10_240, bytes: 512 << 20)
    private let memory: DomainMemory
    private var pages: [UnsafeMutableRawPointer] = unsafe []
    /// Bytes of the frame buffer.
    private var room = 0
    private var shape: PictureShape?
    public private(set) var width = 640
    public private(set) var height = 480
    public private(set) var frame = HostBytes(640 * 480 * 4)
    private var isFull = true

    public init(memory: DomainMemory) { self.memory = memory }

    /// Takes up a frame buffer of `bytes` bytes whose directory lies in frames `directory`; false if it makes no sense.
    func connect(_ shape: PictureShape, bytes: Int, directory: [UInt64], wordBytes: Int) -> Bool {
        guard bytes > 0, bytes <= Self.largest.bytes else { return false }
        let count = (bytes + DomainMemory.pageSize - 1) / DomainMemory.pageSize
        var found: [UnsafeMutableRawPointer] = unsafe []
        for frame in directory {
            guard let table = unsafe memory.page(frame) else { return false }
            for index in 0..<(DomainMemory.pageSize / wordBytes) where unsafe found.count < count {
                let number =
                    unsafe wordBytes == 8
                    ? table.load(fromByteOffset: index * 8, as: UInt64.self)
                    : UInt64(table.load(fromByteOffset: index * 4, as: UInt32.self))
                guard let page = unsafe memory.page(number) else { return false }
                unsafe found.append(page)
            }
        }
        guard unsafe found.count == count else { return false }
        // A connection begins without an older frame buffer, so nothing is lost when this one does not fit.
        unsafe (pages, room) = unsafe (found, bytes)
        if resize(shape) { return true }
        disconnect()
        return false
    }

    /// Whether the shape fits into the frame buffer; if not, nothing changes.
    func resize(_ new: PictureShape) -> Bool {
        guard [8, 16, 24, 32].contains(new.depth), new.width > 0, new.width <= Self.largest.width, new.height > 0,
            new.height <= Self.largest.height, new.lineBytes >= new.width * new.depth / 8,
            new.lineBytes <= Self.largest.bytes, new.offset >= 0, new.offset <= room,
            (new.height - 1) * new.lineBytes + new.width * new.depth / 8 <= room - new.offset
        else { return false }
        shape = new
        isFull = true
        return true
    }

    /// The guest is gone: the screen is black.
    func disconnect() {
        unsafe pages = unsafe []
        (shape, room, isFull) = (nil, 0, true)
    }

    public func refresh() -> PictureUpdate {
        var update = PictureUpdate()
        let size = shape.map { ($0.width, $0.height) } ?? (width, height)
        if size != (width, height) {
            (width, height) = size
            frame = HostBytes(width * height * 4)
            (update.isResized, isFull) = (true, true)
        }
        let band = 16
        for top in stride(from: 0, to: height, by: band) {
            let rows = min(band, height - top)
            var isChanged = isFull
            for row in top..<(top + rows) where draw(row) { isChanged = true }
            guard isChanged else { continue }
            if let last = update.changed.last, last.y + last.height == top {
                update.changed[update.changed.count - 1].height += rows
            } else {
                update.changed.append(Rectangle(x: 0, y: top, width: width, height: rows))
            }
        }
        isFull = false
        return update
    }

    /// Copies a line; whether it has changed.
    private func draw(_ row: Int) -> Bool {
        guard let shape else {
            guard isFull else { return false }
            for column in 0..<width { frame.setLong((row * width + column) * 4, 0) }
            return true
        }
        var (place, column, isChanged) = (shape.offset + row * shape.lineBytes, 0, false)
        let bytes = shape.depth / 8
        while column < shape.width {
            let (page, within) = (place / DomainMemory.pageSize, place % DomainMemory.pageSize)
            // Pixels that lie in this page as a whole; of 24 bits, one may cross into the next.
            let count = min(shape.width - column, max(1, (DomainMemory.pageSize - within) / bytes))
            let at = (row * width + column) * 4
            if bytes == 4, within % 4 == 0 {
                if unsafe frame.take(pages[page] + within, at: at, bytes: count * 4) { isChanged = true }
            } else {
                for index in 0..<count {
                    let colour = pixel(place + index * bytes, bytes)
                    if frame.long(at + index * 4) != colour {
                        frame.setLong(at + index * 4, colour)
                        isChanged = true
                    }
                }
            }
            column += count
            place += count * bytes
        }
        return isChanged
    }

    private func pixel(_ place: Int, _ bytes: Int) -> UInt32 {
        var value: UInt32 = 0
        for index in 0..<bytes {
            let (page, within) = ((place + index) / DomainMemory.pageSize, (place + index) % DomainMemory.pageSize)
            guard unsafe page < pages.count else { break }
            value |= unsafe UInt32(pages[page].load(fromByteOffset: within, as: UInt8.self)) << UInt32(8 * index)
        }
        func colour(_ red: UInt32, _ green: UInt32, _ blue: UInt32) -> UInt32 { red << 16 | green << 8 | blue }
        switch bytes {
        case 1: return colour((value >> 5 & 7) * 36, (value >> 2 & 7) * 36, (value & 3) * 85)
        case 2:
            return colour((value >> 11 & 31) * 255 / 31, (value >> 5 & 63) * 255 / 63, (value & 31) * 255 / 31)
        default: return value & 0xFF_FFFF
        }
    }
}
