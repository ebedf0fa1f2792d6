#define _GNU_SOURCE
#include "chost.h"
#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

// "NAME: forbidden system call "; written before the filter is loaded, read by the handler only.
static char sentence[80];
static size_t sentence_length;

int chost_give_up_privileges(int most) {
    struct rlimit none = {0, 0}, descriptors = {(rlim_t)most, (rlim_t)most};
    if (setrlimit(RLIMIT_CORE, &none) < 0 || setrlimit(RLIMIT_NOFILE, &descriptors) < 0) return -errno;
    // Nobody but root may trace the process or read its memory; a crash leaves no guest memory on a disk.
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0) return -errno;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return -errno;
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    memset(data, 0, sizeof data);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return syscall(SYS_capset, &header, data) < 0 ? -errno : 0;
}

// SIGSYS: says which call it was, then lets the signal end the process. Only async-signal-safe calls.
static void on_forbidden(int number, siginfo_t *information, void *context) {
    (void)context;
    char line[sizeof sentence + 16], digits[12];
    size_t length = sentence_length, count = 0;
    memcpy(line, sentence, length);
    for (unsigned call = (unsigned)information->si_syscall; count == 0 || call; call /= 10) {
        digits[count++] = (char)('0' + call % 10);
    }
    while (count) line[length++] = digits[--count];
    line[length++] = '\n';
    ssize_t ignored = write(2, line, length);
    (void)ignored;
    // SA_RESETHAND has put the default action back.
    syscall(SYS_tgkill, getpid(), (pid_t)syscall(SYS_gettid), number);
}

int chost_seccomp(const struct sock_filter *program, int length, const char *name) {
    sentence_length = strnlen(name, 31);
    memcpy(sentence, name, sentence_length);
    static const char rest[] = ": forbidden system call ";
    memcpy(sentence + sentence_length, rest, sizeof rest - 1);
    sentence_length += sizeof rest - 1;
    struct sigaction action = {.sa_sigaction = on_forbidden, .sa_flags = (int)(SA_SIGINFO | SA_RESETHAND | SA_NODEFER)};
    // The Swift runtime's report of a crash needs what is forbidden from here on.
    static const int crashes[] = {SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV};
    for (size_t index = 0; index < sizeof crashes / sizeof *crashes; index++) signal(crashes[index], SIG_DFL);
    if (sigaction(SIGSYS, &action, NULL) < 0) return -errno;
    struct sock_fprog filter = {.len = (unsigned short)length, .filter = (struct sock_filter *)program};
    // Without SPEC_ALLOW older kernels switch speculative store bypass off for the process, which slows the engine;
    // all that the process could so read is the memory of the domain that it serves.
    unsigned flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &filter);
    return result == 0 ? 0 : result > 0 ? -ESRCH : -errno;
}
