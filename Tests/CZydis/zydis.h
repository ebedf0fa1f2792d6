// Lengths of instructions as Zydis sees them; Swift cannot take the library's macros.
#include <Zydis/Zydis.h>
#include <string.h>

/// Length of the instruction at `code` (mode: 16, 32 or 64), or 0 when it is none.
/// `text` receives its mnemonic.
static inline int zydis_length(int mode, const unsigned char *code, int bytes, char *text, int room) {
    ZydisDecoder decoder;
    ZydisDecodedInstruction instruction;
    ZydisMachineMode machine = mode == 64 ? ZYDIS_MACHINE_MODE_LONG_64
        : mode == 32 ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_COMPAT_16;
    ZydisStackWidth stack = mode == 64 ? ZYDIS_STACK_WIDTH_64 : mode == 32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16;
    ZydisDecoderInit(&decoder, machine, stack);
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, NULL, code, (ZyanUSize)bytes, &instruction))) return 0;
    const char *name = ZydisMnemonicGetString(instruction.mnemonic);
    strncpy(text, name ? name : "", (size_t)room - 1);
    text[room - 1] = 0;
    return instruction.length;
}
