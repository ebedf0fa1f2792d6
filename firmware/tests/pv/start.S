# A tiny 64-bit PV kernel's entries: start, traps, events, system calls, a second vCPU, and a program of its own.
# Source: Xen's public/elfnote.h; public/arch-x86/xen-x86_64.h (struct iret_context); frames as create_bounce_frame has them.
    .macro note type, kind, value:vararg
    .balign 4
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  .\kind \value
2:  .balign 4
    .endm

    .section .note.Xen, "a", @note
    note 1, quad, start
    note 2, quad, hypercall_page
    note 3, quad, 0xFFFFFFFF80000000
    note 4, quad, 0
    note 5, asciz, "xen-3.0"
    note 6, asciz, "apus-pv-test"
    note 8, asciz, "generic"
    note 9, asciz, "yes"

    .section .bss
    .balign 4096
    .globl hypercall_page
hypercall_page: .skip 4096

    .text
start:
    mov %rsi, %rdi
    call main
    ud2

    # Xen has put RCX and R11 on top of the frame. The handler finds all registers, the vector and the error code.
    .macro entry number, error
    .globl entry_\number
entry_\number:
    pop %rcx
    pop %r11
    .if !\error
    push $0
    .endif
    push $\number
    jmp common
    .endm
    entry 2, 0
    entry 3, 0
    entry 6, 0
    entry 7, 0
    entry 11, 1
    entry 13, 1
    entry 14, 1
    entry 128, 0
    # Events, and system calls of programs.
    entry 256, 0
    entry 257, 0
    # The failsafe callback gets the four data selectors, too.
    .globl entry_258
entry_258:
    pop %rcx
    pop %r11
    add $32, %rsp
    push $0
    push $258
common:
    push %rax; push %rcx; push %rdx; push %rbx; push %rbp; push %rsi; push %rdi
    push %r8; push %r9; push %r10; push %r11; push %r12; push %r13; push %r14; push %r15
    cld
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    call on_trap
    mov %rbx, %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8
    pop %rdi; pop %rsi; pop %rbp; pop %rbx; pop %rdx; pop %rcx; pop %rax
    add $16, %rsp
return:
    push $0
    push %rcx
    push %r11
    push %rax
    mov $23, %eax
    syscall

    # enter_program(instruction, stack): until the program leaves.
    .globl enter_program
enter_program:
    push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
    mov %rsp, kernel_stack_pointer(%rip)
    push $0xE02B
    push %rsi
    push $0x202
    push $0xE033
    push %rdi
    jmp return
    .globl leave_program
leave_program:
    mov kernel_stack_pointer(%rip), %rsp
    pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
    ret

    .globl second_start
second_start:
    call second
    ud2

    # Copied to a page that programs may read: a call with what lies at GS, a look at the kernel, HLT, INT 128, and the end.
    .globl program, program_end
program:
    mov %gs:0, %rdi
    mov $1, %eax
    syscall
    mov %rax, %rsi
    mov $2, %eax
    syscall
    mov 0xFFFFFFFF80100000, %al
    hlt
    int $128
    mov $3, %eax
    syscall
    ud2
program_end:

    .section .bss
kernel_stack_pointer: .skip 8
