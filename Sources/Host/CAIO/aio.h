#include <libaio.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

/* glibc declares it for _GNU_SOURCE only. */
extern ssize_t preadv2(int descriptor, const struct iovec *vectors, int count, off_t offset, int flags);

/* preadv2(2) that fails with EAGAIN rather than wait for a device (RWF_NOWAIT). */
static inline long caio_read_now(int descriptor, const struct iovec *vectors, int count, long offset) {
    return preadv2(descriptor, vectors, count, offset, 0x8);
}
