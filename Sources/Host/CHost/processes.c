#define _GNU_SOURCE
#include "chost.h"
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_DESCRIPTORS = 16, ABOVE_ALL_TARGETS = 64 };

// In the child of fork: only async-signal-safe calls. Returns errno.
static int become(const char *path, const char *const *arguments, const char *const *environment,
                  const int *descriptors, int count, int death_signal, int new_session, int parent) {
    if (new_session && setsid() < 0) return errno;
    if (death_signal && prctl(PR_SET_PDEATHSIG, death_signal) < 0) return errno;
    if (death_signal && getppid() != parent) return ESRCH;
    int high[MOST_DESCRIPTORS];
    for (int index = 0; index < count; index++) {
        int source = descriptors[index] < 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : descriptors[index];
        if (source < 0) return errno;
        high[index] = fcntl(source, F_DUPFD_CLOEXEC, ABOVE_ALL_TARGETS);
        if (high[index] < 0) return errno;
    }
    for (int index = 0; index < count; index++) {
        if (dup2(high[index], index) < 0) return errno;
    }
    if (syscall(SYS_close_range, (unsigned)count, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */) < 0) return errno;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
    execve(path, (char *const *)arguments, (char *const *)environment);
    return errno;
}

int chost_spawn(const char *path, const char *const *arguments, const char *const *environment, const int *descriptors,
                int descriptor_count, int death_signal, int new_session) {
    if (descriptor_count < 0 || descriptor_count > MOST_DESCRIPTORS) return -EINVAL;
    int report[2];
    if (pipe2(report, O_CLOEXEC) < 0) return -errno;
    int parent = getpid();
    int child = fork();
    if (child < 0) {
        int error = errno;
        close(report[0]);
        close(report[1]);
        return -error;
    }
    if (child == 0) {
        // The report must not lie where a descriptor goes.
        int high = fcntl(report[1], F_DUPFD_CLOEXEC, ABOVE_ALL_TARGETS);
        int error = become(path, arguments, environment, descriptors, descriptor_count, death_signal, new_session, parent);
        ssize_t ignored = write(high, &error, sizeof error);
        (void)ignored;
        _exit(127);
    }
    close(report[1]);
    int error = 0;
    ssize_t count;
    do count = read(report[0], &error, sizeof error);
    while (count < 0 && errno == EINTR);
    close(report[0]);
    if (count != sizeof error) return child;
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR) {}
    return -error;
}

int chost_fork(int death_signal) {
    int parent = getpid();
    int child = fork();
    if (child < 0) return -errno;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, death_signal);
        if (getppid() != parent) raise(death_signal);
    }
    return child;
}

int chost_pidfd(int pid) {
    long descriptor = syscall(SYS_pidfd_open, pid, 0);
    return descriptor < 0 ? -errno : (int)descriptor;
}

int chost_adopt_orphans(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? -errno : 0; }

int chost_signals(const int *signals, int count) {
    sigset_t set;
    sigemptyset(&set);
    for (int index = 0; index < count; index++) sigaddset(&set, signals[index]);
    if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) return -errno;
    int descriptor = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return descriptor < 0 ? -errno : descriptor;
}

// An address for `path`. A path that does not fit is reached through its directory's descriptor.
static int address_of(const char *path, struct sockaddr_un *address, int *directory) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    *directory = -1;
    if (strlen(path) < sizeof address->sun_path) {
        strcpy(address->sun_path, path);
        return 0;
    }
    char copy[PATH_MAX], other[PATH_MAX];
    if (strlen(path) >= sizeof copy) return -ENAMETOOLONG;
    strcpy(copy, path);
    strcpy(other, path);
    *directory = open(dirname(copy), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*directory < 0) return -errno;
    int length = snprintf(address->sun_path, sizeof address->sun_path, "/proc/self/fd/%d/%s", *directory, basename(other));
    return length < (int)sizeof address->sun_path ? 0 : -ENAMETOOLONG;
}

static int unix_socket(const char *path, int listens) {
    struct sockaddr_un address;
    int directory;
    int result = address_of(path, &address, &directory);
    int descriptor = result < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (result == 0 && descriptor < 0) result = -errno;
    if (result == 0 && listens) {
        unlink(path);
        if (bind(descriptor, (struct sockaddr *)&address, sizeof address) < 0 || listen(descriptor, 16) < 0) result = -errno;
    } else if (result == 0 && connect(descriptor, (struct sockaddr *)&address, sizeof address) < 0) {
        result = -errno;
    }
    if (directory >= 0) close(directory);
    if (result == 0) return descriptor;
    if (descriptor >= 0) close(descriptor);
    return result;
}

int chost_unix_listen(const char *path) { return unix_socket(path, 1); }
int chost_unix_connect(const char *path) { return unix_socket(path, 0); }

int chost_accept(int socket) {
    int descriptor = accept4(socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return descriptor < 0 ? -errno : descriptor;
}

int chost_pipe(int *ends) { return pipe2(ends, O_CLOEXEC) < 0 ? -errno : 0; }

int chost_lock(int descriptor, int wait) {
    int result;
    do result = flock(descriptor, LOCK_EX | (wait ? 0 : LOCK_NB));
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : 0;
}

void chost_cpuid(unsigned leaf, unsigned subleaf, unsigned *registers) {
    memset(registers, 0, 4 * sizeof *registers);
    __get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3]);
}
