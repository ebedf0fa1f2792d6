// The numbers of Xen's ABI come from Xen's public headers (Debian: libxen-dev).
#include <stdint.h>
#include <xen/xen.h>
#include <xen/hvm/ioreq.h>
#include <xen/hvm/dm_op.h>
#include <xen/event_channel.h>
#include <xen/version.h>
#include <xen/arch-x86/cpuid.h>
