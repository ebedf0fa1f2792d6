#include <zlib.h>
#include <lzma.h>
#include <zstd.h>
#include <lz4.h>

/// inflateInit2 is a macro.
static inline int compression_inflate_init(z_stream *stream, int window_bits) {
    return inflateInit2(stream, window_bits);
}
