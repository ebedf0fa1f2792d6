// Compressed clusters.
// Source: QEMU's docs/interop/qcow2.txt (compression types); RFC 1951; zstd's streaming interface.
// Modelled: unpacking. Not modelled: packing (QEMU itself packs only when it converts).
// Quirks: what is packed ends anywhere in its last sector, so bytes behind its end are no mistake.
internal import CCompression

enum Qcow2Compression {
    /// Exactly `count` bytes, or nil.
    static func unpack(_ packed: [UInt8], _ kind: Qcow2Header.Compression, into count: Int) -> [UInt8]? {
        var bytes = [UInt8](repeating: 0, count: count)
        let made = unsafe packed.withUnsafeBytes { input in
            unsafe bytes.withUnsafeMutableBytes { output in
                kind == .deflate ? unsafe inflate(input, output) : unsafe zstd(input, output)
            }
        }
        return made == count ? bytes : nil
    }

    /// Bytes made; a stream without header or checksum.
    private static func inflate(_ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) -> Int {
        var stream = unsafe z_stream()
        guard unsafe compression_inflate_init(&stream, -15) == Z_OK else { return 0 }
        defer { unsafe inflateEnd(&stream) }
        unsafe stream.next_in = UnsafeMutablePointer(
            mutating: input.baseAddress?.assumingMemoryBound(to: UInt8.self))
        unsafe stream.avail_in = UInt32(truncatingIfNeeded: input.count)
        unsafe stream.next_out = output.baseAddress?.assumingMemoryBound(to: UInt8.self)
        unsafe stream.avail_out = UInt32(truncatingIfNeeded: output.count)
        let result = unsafe CCompression.inflate(&stream, Z_FINISH)
        // Z_BUF_ERROR: the output is full before the stream's end mark was read.
        guard result == Z_STREAM_END || result == Z_BUF_ERROR else { return 0 }
        return unsafe output.count - Int(stream.avail_out)
    }

    private static func zstd(_ input: UnsafeRawBufferPointer, _ output: UnsafeMutableRawBufferPointer) -> Int {
        guard let stream = unsafe ZSTD_createDStream() else { return 0 }
        defer { unsafe ZSTD_freeDStream(stream) }
        var from = unsafe ZSTD_inBuffer(src: input.baseAddress, size: input.count, pos: 0)
        var to = unsafe ZSTD_outBuffer(dst: output.baseAddress, size: output.count, pos: 0)
        while unsafe to.pos < to.size {
            let before = unsafe (from.pos, to.pos)
            let result = unsafe ZSTD_decompressStream(stream, &to, &from)
            if ZSTD_isError(result) != 0 { return 0 }
            if unsafe before == (from.pos, to.pos) { break }
        }
        return unsafe to.pos
    }
}
