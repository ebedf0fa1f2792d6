#include "cprocessor.h"
_Static_assert(sizeof(apus_insn) <= 56, "a decoded instruction stays within 56 bytes");
_Static_assert(offsetof(apus_vcpu, fpu) % 64 == 0, "XSAVE needs its image aligned");
_Static_assert(offsetof(apus_vcpu, scratch) % 64 == 0, "thunks use aligned operands");
