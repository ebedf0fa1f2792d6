#define _GNU_SOURCE
#include "chost.h"
#include <sched.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int chost_futex_wait(volatile uint32_t *word, uint32_t expected, uint64_t nanoseconds) {
    struct timespec timeout = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)};
    struct timespec *limit = nanoseconds == UINT64_MAX ? NULL : &timeout;
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, limit, NULL, 0) < 0 ? -errno : 0;
}

int chost_futex_wake(volatile uint32_t *word, int count) {
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? -errno : (int)woken;
}

int chost_memfd(const char *name, uint64_t size) {
    int descriptor = memfd_create(name, MFD_CLOEXEC);
    if (descriptor < 0) return -errno;
    if (ftruncate(descriptor, (off_t)size) < 0) {
        int error = errno;
        close(descriptor);
        return -error;
    }
    return descriptor;
}

long chost_send_descriptors(int socket, const void *bytes, size_t count, const int *descriptors, int descriptor_count) {
    if (descriptor_count < 0 || descriptor_count > CHOST_MOST_DESCRIPTORS) return -EINVAL;
    struct iovec vector = {.iov_base = (void *)bytes, .iov_len = count};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * CHOST_MOST_DESCRIPTORS)];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (descriptor_count > 0) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)descriptor_count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)descriptor_count);
        memcpy(CMSG_DATA(header), descriptors, sizeof(int) * (size_t)descriptor_count);
    }
    ssize_t sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

long chost_receive_descriptors(int socket, void *bytes, size_t count, int *descriptors, int *descriptor_count) {
    struct iovec vector = {.iov_base = bytes, .iov_len = count};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * CHOST_MOST_DESCRIPTORS)];
    } control;
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    *descriptor_count = 0;
    ssize_t received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (received < 0) return -errno;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        int held = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(descriptors, CMSG_DATA(header), sizeof(int) * (size_t)held);
        *descriptor_count = held;
    }
    return received;
}

int chost_open(const char *path, int flags, unsigned mode) {
    int descriptor = open(path, flags, mode);
    return descriptor < 0 ? -errno : descriptor;
}

int chost_ioctl(int descriptor, unsigned long request, void *argument) {
    int result = ioctl(descriptor, request, argument);
    return result < 0 ? -errno : result;
}

int chost_fcntl(int descriptor, int command, long argument) {
    int result = fcntl(descriptor, command, argument);
    return result < 0 ? -errno : result;
}

int chost_open_terminal(char *path, size_t size) {
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0) return -errno;
    if (grantpt(master) == 0 && unlockpt(master) == 0 && ptsname_r(master, path, size) == 0) return master;
    int error = errno;
    close(master);
    return -error;
}

void chost_name_thread(const char *name) { prctl(PR_SET_NAME, (unsigned long)name, 0, 0, 0); }

int chost_affinity(int thread, unsigned char *bits, size_t size, int set) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    if (set)
        for (size_t cpu = 0; cpu < size * 8 && cpu < CPU_SETSIZE; cpu++)
            if (bits[cpu / 8] >> (cpu % 8) & 1) CPU_SET(cpu, &cpus);
    if ((set ? sched_setaffinity(thread, sizeof cpus, &cpus) : sched_getaffinity(thread, sizeof cpus, &cpus)) != 0)
        return -errno;
    if (!set)
        for (size_t cpu = 0; cpu < size * 8 && cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, &cpus)) bits[cpu / 8] |= (unsigned char)(1 << (cpu % 8));
    return 0;
}
