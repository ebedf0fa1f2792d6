#include "alu.h"
#include "cprocessor.h"
_Static_assert(sizeof(apus_insn) <= 64, "a decoded instruction is one cache line");
_Static_assert(offsetof(apus_vcpu, fpu) % 64 == 0, "XSAVE needs its image aligned");
_Static_assert(offsetof(apus_vcpu, scratch) % 64 == 0, "thunks use aligned operands");
_Static_assert(offsetof(apus_vcpu, mode_key) % 8 == 0 && offsetof(apus_vcpu, jump_generation) ==
               offsetof(apus_vcpu, mode_key) + 4, "translated code compares both at once");
_Static_assert(sizeof(apus_jump) == 32, "translated code scales by shifting");
