/* The vectors of the ESP32's cores, at their fixed distances from VECBASE. Interrupts and register windows stay off. */
    .section .text.vectors, "ax"
    .balign 1024
    .global vectors
vectors:
    .org vectors + 0x300    /* exceptions in kernel mode */
    wsr.excsave1 a0
    j exception
    .org vectors + 0x340    /* in user mode */
    wsr.excsave1 a0
    j exception
    .org vectors + 0x3c0    /* in an exception */
    wsr.excsave1 a0
    j exception
    .org vectors + 0x400

    .section .text.exception, "ax"
    .balign 4
    .literal_position
exception:
    movi a0, panic_frame
    .irp n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    s32i a\n, a0, 4 * (\n + 2)
    .endr
    rsr.epc1 a2
    s32i a2, a0, 0
    rsr.ps a2
    s32i a2, a0, 4
    rsr.excsave1 a2
    s32i a2, a0, 8
    rsr.sar a2
    s32i a2, a0, 72
    rsr.exccause a2
    s32i a2, a0, 76
    rsr.excvaddr a2
    s32i a2, a0, 80
    /* rsr a2, LBEG, LEND, LCOUNT: the ESP8266, for which the assembler was made, has no loop registers. */
    .byte 0x20, 0, 0x03
    s32i a2, a0, 84
    .byte 0x20, 1, 0x03
    s32i a2, a0, 88
    .byte 0x20, 2, 0x03
    s32i a2, a0, 92
    movi a1, panic_stack_top
    movi a2, 0x2f
    wsr.ps a2
    rsync
    mov a2, a0
    call0 panic

    .section .text.use_vectors, "ax"
    .balign 4
    .literal_position
    .global use_vectors
use_vectors:
    movi a2, vectors
    wsr.vecbase a2
    rsync
    ret

    .bss
    .balign 16
panic_frame:
    .space 24 * 4
    .balign 16
    .space 1024
panic_stack_top:
