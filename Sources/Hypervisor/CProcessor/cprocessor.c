#include "cprocessor.h"
_Static_assert(sizeof(apus_insn) <= 56, "a decoded instruction stays within 56 bytes");
