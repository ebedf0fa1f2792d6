#define _GNU_SOURCE
#include "chost.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/landlock.h>
#include <linux/sockios.h>
#include <linux/virtio_net.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MOST_PIECES = 64, FRAME_HEADER = 10 };

static int set_name(struct ifreq *request, const char *name) {
    memset(request, 0, sizeof *request);
    if (strlen(name) >= sizeof request->ifr_name) return -ENAMETOOLONG;
    strcpy(request->ifr_name, name);
    return 0;
}

// Address, size and state of a new tap, by a socket's ioctls. An address that no host has, as libxl's scripts give it.
static int set_up(int control, const char *name, const char *bridge, int mtu) {
    struct ifreq request;
    int result = set_name(&request, name);
    if (result < 0) return result;
    static const unsigned char address[6] = {0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
    request.ifr_hwaddr.sa_family = 1 /* ARPHRD_ETHER */;
    memcpy(request.ifr_hwaddr.sa_data, address, sizeof address);
    if (ioctl(control, SIOCSIFHWADDR, &request) < 0) return -errno;
    set_name(&request, name);
    request.ifr_mtu = mtu;
    if (ioctl(control, SIOCSIFMTU, &request) < 0) return -errno;
    if (*bridge) {
        set_name(&request, name);
        if (ioctl(control, SIOCGIFINDEX, &request) < 0) return -errno;
        int index = request.ifr_ifindex;
        result = set_name(&request, bridge);
        if (result < 0) return result;
        request.ifr_ifindex = index;
        if (ioctl(control, SIOCBRADDIF, &request) < 0) return -errno;
    }
    set_name(&request, name);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0) return -errno;
    request.ifr_flags |= IFF_UP;
    return ioctl(control, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
}

int chost_is_bridge(const char *name) {
    struct ifreq request;
    if (set_name(&request, name) < 0) return 0;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0) return 0;
    struct ethtool_drvinfo driver = {.cmd = ETHTOOL_GDRVINFO};
    request.ifr_data = (void *)&driver;
    int result = ioctl(control, SIOCETHTOOL, &request) == 0 && strcmp(driver.driver, "bridge") == 0;
    close(control);
    return result;
}

int chost_tap(const char *name, const char *bridge, int mtu) {
    struct ifreq request;
    int result = set_name(&request, name);
    if (result < 0) return result;
    int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (tap < 0) return -errno;
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    int header = FRAME_HEADER;
    if (ioctl(tap, TUNSETIFF, &request) < 0 || ioctl(tap, TUNSETVNETHDRSZ, &header) < 0
        || ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN) < 0)
        result = -errno;
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0 && result == 0) result = -errno;
    if (result == 0) result = set_up(control, name, bridge, mtu);
    if (control >= 0) close(control);
    if (result == 0) return tap;
    close(tap);
    return result;
}

long chost_send_frame(int port, const void *header, const void *start, size_t start_bytes, const struct iovec *pieces,
                      int count) {
    struct iovec all[MOST_PIECES + 2];
    if (count < 0 || count > MOST_PIECES) return -EINVAL;
    all[0] = (struct iovec){(void *)header, FRAME_HEADER};
    int used = 1;
    if (start_bytes) all[used++] = (struct iovec){(void *)start, start_bytes};
    for (int index = 0; index < count; index++) all[used++] = pieces[index];
    long sent;
    do sent = writev(port, all, used);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

long chost_receive_frame(int port, void *header, void *bytes, size_t room) {
    struct iovec both[2] = {{header, FRAME_HEADER}, {bytes, room}};
    long received;
    do received = readv(port, both, 2);
    while (received < 0 && errno == EINTR);
    return received < 0 ? -errno : received;
}

int chost_frame_sockets(int *ends) {
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0) return -errno;
    int size = 1 << 20;
    for (int end = 0; end < 2; end++) {
        // More than the host allows is cut, not refused.
        setsockopt(ends[end], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        setsockopt(ends[end], SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    }
    return 0;
}

int chost_read_only_paths(const char *const *paths, int count) {
    struct landlock_ruleset_attr ruleset = {.handled_access_fs = (1ULL << 13) - 1};
    int set = (int)syscall(SYS_landlock_create_ruleset, &ruleset, sizeof ruleset, 0);
    if (set < 0) return -errno;
    for (int index = 0; index < count; index++) {
        struct landlock_path_beneath_attr rule = {.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE};
        rule.parent_fd = open(paths[index], O_PATH | O_CLOEXEC);
        if (rule.parent_fd < 0) continue;
        struct stat status;
        if (fstat(rule.parent_fd, &status) == 0 && !S_ISDIR(status.st_mode))
            syscall(SYS_landlock_add_rule, set, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
        close(rule.parent_fd);
    }
    int result = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
    if (result == 0 && syscall(SYS_landlock_restrict_self, set, 0) < 0) result = -errno;
    close(set);
    return result;
}
