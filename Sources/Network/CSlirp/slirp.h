// libslirp: a user network (Debian: libslirp-dev).
#include <slirp/libslirp.h>
