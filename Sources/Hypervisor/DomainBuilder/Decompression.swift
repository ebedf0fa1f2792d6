// Compressed kernels: the format is told by the first bytes.
// Source: Linux's lib/decompress.c for the magics; RFC 1952; the legacy LZ4 frame of the lz4 tool.
internal import CCompression

enum Decompression {
    /// No kernel is larger than this when unpacked.
    static let limit = 1 << 29

    static func unpack(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> [UInt8] {
        let head = Array(bytes.prefix(6))
        if head.starts(with: [0x1F, 0x8B]) { return try inflate(bytes) }
        if head.starts(with: [0xFD, 0x37, 0x7A, 0x58, 0x5A, 0]) { return try lzma(bytes, format: "xz") }
        if head.starts(with: [0x5D, 0, 0]) { return try lzma(bytes, format: "lzma") }
        if head.starts(with: [0x28, 0xB5, 0x2F, 0xFD]) { return try zstd(bytes) }
        if head.starts(with: [0x02, 0x21, 0x4C, 0x18]) { return try lz4(bytes) }
        if head.starts(with: [0x7F, 0x45, 0x4C, 0x46]) { return Array(bytes) }
        throw .unknownCompression
    }

    private static func inflate(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> [UInt8] {
        var result: [UInt8] = []
        _ = try inflate(bytes, limit: limit) { result += $0 }
        return result
    }

    /// How many of `bytes` are one gzip member.
    static func gzipLength(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> Int {
        try inflate(bytes, limit: .max) { _ in }
    }

    private static func inflate(
        _ bytes: ArraySlice<UInt8>, limit: Int, _ take: (ArraySlice<UInt8>) -> Void
    ) throws(KernelError) -> Int {
        var stream = unsafe z_stream()
        guard unsafe compression_inflate_init(&stream, 15 + 16) == Z_OK else { throw .damaged("gzip") }
        defer { unsafe inflateEnd(&stream) }
        let step = {
            (input: UnsafeBufferPointer<UInt8>, output: UnsafeMutableBufferPointer<UInt8>) -> (Int, Int, Bool)? in
            unsafe stream.next_in = UnsafeMutablePointer(mutating: input.baseAddress)
            unsafe stream.avail_in = UInt32(truncatingIfNeeded: input.count)
            unsafe stream.next_out = output.baseAddress
            unsafe stream.avail_out = UInt32(truncatingIfNeeded: output.count)
            let result = unsafe CCompression.inflate(&stream, Z_NO_FLUSH)
            guard result == Z_OK || result == Z_STREAM_END else { return nil }
            return unsafe (
                input.count - Int(stream.avail_in), output.count - Int(stream.avail_out), result == Z_STREAM_END
            )
        }
        return try unsafe feed("gzip", bytes, limit: limit, step, take)
    }

    private static func lzma(_ bytes: ArraySlice<UInt8>, format: String) throws(KernelError) -> [UInt8] {
        var stream = unsafe lzma_stream()
        let ready =
            unsafe format == "xz"
            ? lzma_stream_decoder(&stream, 1 << 30, 0) : lzma_alone_decoder(&stream, 1 << 30)
        guard ready == LZMA_OK else { throw .damaged(format) }
        defer { unsafe lzma_end(&stream) }
        return try unsafe collect(format, bytes) { input, output in
            unsafe stream.next_in = input.baseAddress
            unsafe stream.avail_in = input.count
            unsafe stream.next_out = output.baseAddress
            unsafe stream.avail_out = output.count
            let result = unsafe lzma_code(&stream, LZMA_RUN)
            guard result == LZMA_OK || result == LZMA_STREAM_END else { return nil }
            return unsafe (input.count - stream.avail_in, output.count - stream.avail_out, result == LZMA_STREAM_END)
        }
    }

    private static func zstd(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> [UInt8] {
        guard let stream = unsafe ZSTD_createDStream() else { throw .damaged("zstd") }
        defer { unsafe ZSTD_freeDStream(stream) }
        return try unsafe collect("zstd", bytes) { input, output in
            var from = unsafe ZSTD_inBuffer(src: input.baseAddress, size: input.count, pos: 0)
            var to = unsafe ZSTD_outBuffer(dst: output.baseAddress, size: output.count, pos: 0)
            let left = unsafe ZSTD_decompressStream(stream, &to, &from)
            guard ZSTD_isError(left) == 0 else { return nil }
            return unsafe (from.pos, to.pos, left == 0)
        }
    }

    /// Blocks of at most 8 MiB, each behind its packed length; the kernel's own length follows the last.
    private static func lz4(_ bytes: ArraySlice<UInt8>) throws(KernelError) -> [UInt8] {
        let fields = Fields(bytes, part: "lz4 data")
        var result: [UInt8] = []
        var offset = 4
        var block = [UInt8](repeating: 0, count: 8 << 20)
        while offset <= bytes.count - 8 {
            let packed = try fields.number(offset, as: UInt32.self)
            let input = try fields.slice(UInt64(offset + 4), UInt64(packed))
            let count = unsafe input.withUnsafeBytes { source in
                unsafe block.withUnsafeMutableBytes { target in
                    unsafe LZ4_decompress_safe(
                        source.baseAddress, target.baseAddress, Int32(truncatingIfNeeded: source.count),
                        Int32(truncatingIfNeeded: target.count))
                }
            }
            guard count >= 0, result.count < limit else { throw .damaged("lz4") }
            result += block.prefix(Int(count))
            offset += 4 + Int(packed)
        }
        return result
    }

    /// What `step` makes of `bytes`.
    private static func collect(
        _ format: String, _ bytes: ArraySlice<UInt8>,
        _ step: (UnsafeBufferPointer<UInt8>, UnsafeMutableBufferPointer<UInt8>) -> (Int, Int, Bool)?
    ) throws(KernelError) -> [UInt8] {
        var result: [UInt8] = []
        _ = try unsafe feed(format, bytes, limit: limit, step) { result += $0 }
        return result
    }

    /// Feeds `bytes` to `step`, which tells how much it took and gave and whether that was the end. How much it took.
    private static func feed(
        _ format: String, _ bytes: ArraySlice<UInt8>, limit: Int,
        _ step: (UnsafeBufferPointer<UInt8>, UnsafeMutableBufferPointer<UInt8>) -> (Int, Int, Bool)?,
        _ take: (ArraySlice<UInt8>) -> Void
    ) throws(KernelError) -> Int {
        var given = 0
        var chunk = [UInt8](repeating: 0, count: 1 << 20)
        var at = bytes.startIndex
        while true {
            let outcome = unsafe bytes[at...].withUnsafeBufferPointer { input in
                unsafe chunk.withUnsafeMutableBufferPointer { output in unsafe step(input, output) }
            }
            guard let (took, gave, isEnd) = outcome, took > 0 || gave > 0 || isEnd else {
                throw at == bytes.endIndex ? .truncated("\(format) data") : .damaged(format)
            }
            take(chunk.prefix(gave))
            at += took
            given += gave
            if isEnd { return at - bytes.startIndex }
            guard given < limit else { throw .damaged(format) }
        }
    }
}
