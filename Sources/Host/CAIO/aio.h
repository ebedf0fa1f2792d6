#include <libaio.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

/* glibc declares it for _GNU_SOURCE only. */
extern ssize_t preadv2(int descriptor, const struct iovec *vectors, int count, off_t offset, int flags);
extern int fallocate(int descriptor, int mode, off_t offset, off_t count);

/* preadv2(2) that fails with EAGAIN rather than wait for a device (RWF_NOWAIT). */
static inline long caio_read_now(int descriptor, const struct iovec *vectors, int count, long offset) {
    return preadv2(descriptor, vectors, count, offset, 0x8);
}

/* Gives up what a range of a file or block device holds, its size unchanged. 0 or -1 with errno. */
static inline int caio_punch_hole(int descriptor, long offset, long count) {
    return fallocate(descriptor, 0x01 /* KEEP_SIZE */ | 0x02 /* PUNCH_HOLE */, offset, count);
}
