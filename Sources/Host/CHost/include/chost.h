// System calls that Swift cannot name itself: variadic or macro-shaped ones.
#ifndef CHOST_H
#define CHOST_H
#include <stdint.h>
#include <stddef.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

/// Lets the processor's other thread go first: what a loop does that looks at a word.
static inline void chost_relax(void) { __builtin_ia32_pause(); }
/// Waits while `*word == expected`, at most `nanoseconds` (UINT64_MAX: for ever). 0 or -errno.
int chost_futex_wait(volatile uint32_t *word, uint32_t expected, uint64_t nanoseconds);
/// Wakes up to `count` waiters. The number woken, or -errno.
int chost_futex_wake(volatile uint32_t *word, int count);
/// A memory file of `size` bytes, close-on-exec. Descriptor or -errno.
int chost_memfd(const char *name, uint64_t size);
/// Descriptors that go with one message at most: an image, and 64 that lie below it, are one message.
#define CHOST_MOST_DESCRIPTORS 72
/// Sends one message with up to CHOST_MOST_DESCRIPTORS descriptors over a Unix socket. Bytes sent or -errno.
long chost_send_descriptors(int socket, const void *bytes, size_t count, const int *descriptors, int descriptor_count);
/// Receives one message with as many (close-on-exec); `*descriptor_count` is set. Bytes or -errno.
long chost_receive_descriptors(int socket, void *bytes, size_t count, int *descriptors, int *descriptor_count);
/// Gives up every capability and the ability to gain any, core dumps, and descriptors above `most`. It holds for the
/// calling thread and those it starts. 0 or -errno.
int chost_give_up_privileges(int most);
/// Loads a seccomp filter for all threads. A call that it traps ends the process by SIGSYS, behind a line on standard
/// error that begins with `name` (at most 31 bytes). 0 or -errno.
int chost_seccomp(const struct sock_filter *program, int length, const char *name);
/// open(2) and ioctl(2) without the variadic part. Result or -errno.
int chost_open(const char *path, int flags, unsigned mode);
int chost_ioctl(int descriptor, unsigned long request, void *argument);
int chost_fcntl(int descriptor, int command, long argument);
/// Starts a program. `descriptors[i]` becomes its descriptor i (-1: /dev/null); it gets no others. When the calling
/// thread ends, it gets `death_signal` (0: nothing). The pid, or -errno, also when the program cannot be executed.
int chost_spawn(const char *path, const char *const *arguments, const char *const *environment, const int *descriptors,
                int descriptor_count, int death_signal, int new_session);
/// fork(2) for a process with one thread: 0 in the child, which gets `death_signal` when the parent ends.
int chost_fork(int death_signal);
/// A descriptor that is readable once the process has ended, or -errno.
int chost_pidfd(int pid);
/// Makes orphans among the descendants children of this process. 0 or -errno.
int chost_adopt_orphans(void);
/// Blocks the signals and gives a descriptor to read them from, or -errno.
int chost_signals(const int *signals, int count);
/// Unix stream sockets (close-on-exec); long paths work too. Descriptor or -errno.
int chost_unix_listen(const char *path);
int chost_unix_connect(const char *path);
/// The next connection of a listening socket (close-on-exec, non-blocking). Descriptor or -errno.
int chost_accept(int socket);
/// A pipe's two ends (close-on-exec): reading, writing. 0 or -errno.
int chost_pipe(int *ends);
/// flock(2), exclusive. 0 or -errno.
int chost_lock(int descriptor, int wait);
/// Opens a new pseudo-terminal's master (close-on-exec, non-blocking) and stores its slave's path. Descriptor or -errno.
int chost_open_terminal(char *path, size_t size);
/// The CPU's answer to CPUID: eax, ebx, ecx, edx.
void chost_cpuid(unsigned leaf, unsigned subleaf, unsigned *registers);
/// Names the calling thread, at most 15 bytes.
void chost_name_thread(const char *name);
/// Gets or sets the processors a thread may run on, one bit each. 0 or -errno.
int chost_affinity(int thread, unsigned char *bits, size_t size, int set);
/// Whether this network namespace has a bridge of that name (/sys may show another namespace).
int chost_is_bridge(const char *name);
/// Makes the tap `name` with frame headers (struct virtio_net_hdr), puts it on `bridge` unless that is empty, and takes it
/// up. It goes with its descriptor. Descriptor (non-blocking) or -errno.
int chost_tap(const char *name, const char *bridge, int mtu);
/// Two connected ends over which frames go like over a tap: one message a frame, a header of 10 bytes first. 0 or -errno.
int chost_frame_sockets(int *ends);
/// Sends a frame: header (10 bytes), its start, and at most 64 more pieces. Bytes sent or -errno.
long chost_send_frame(int port, const void *header, const void *start, size_t start_bytes, const struct iovec *pieces,
                      int count);
/// Receives a frame's header (10 bytes) and the frame. Bytes of both or -errno.
long chost_receive_frame(int port, void *header, void *bytes, size_t room);
/// Leaves this process and its children nothing of the file system but reading `paths` (Landlock). 0 or -errno.
int chost_read_only_paths(const char *const *paths, int count);
#endif
