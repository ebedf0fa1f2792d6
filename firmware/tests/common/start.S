# Boots a test from a disk: sector 0 loads the rest, goes to flat 32-bit mode and calls `main`.
# Source: BIOS boot specification (entry at 0:7C00, drive in DL), Enhanced Disk Drive Services (INT 13h, AH=42h).
    .code16
    .section .boot, "ax"
    .globl start
start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7C00, %sp
    mov $packet, %si
    mov $0x42, %ah
    int $0x13
    jc 1f
    in $0x92, %al
    or $2, %al
    out %al, $0x92
    lgdt table
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $8, $flat
1:  mov $'L', %al
    out %al, $0xE9
    hlt
    .code32
flat:
    mov $16, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x90000, %esp
    call main
2:  cli
    hlt
    jmp 2b
    .balign 8
gdt:
    .quad 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
table:
    .word 23
    .long gdt
packet:
    .byte 16, 0
    .word SECTORS, 0, 0x1000
    .quad 1
    .org 510
    .word 0xAA55

    .section .text
    # One entry for each way an interrupt comes, for the guests that have handlers.
    .macro entry name
    .weak \name
    .globl \name\()_entry
\name\()_entry:
    pusha
    call \name
    popa
    iret
    .endm
    entry on_vector
    entry on_local
    entry on_line
    entry on_pin
