/* The ESP32-C3 has vectored interrupts only, in a table that is aligned to 256 bytes; exceptions go to its first entry.
 * Interrupts stay off. */
    .section .text.vectors, "ax"
    .balign 256
    .global vectors
vectors:
    j exception

    .section .text.exception, "ax"
exception:
    csrw mscratch, sp
    la sp, panic_frame
    sw x1, 0(sp)
    .irp n, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    sw x\n, 4 * (\n - 1)(sp)
    .endr
    csrr t0, mscratch
    sw t0, 4(sp)
    csrr t0, mepc
    sw t0, 124(sp)
    csrr t0, mstatus
    sw t0, 128(sp)
    csrr t0, mtvec
    sw t0, 132(sp)
    csrr t0, mcause
    sw t0, 136(sp)
    csrr t0, mtval
    sw t0, 140(sp)
    csrr t0, mhartid
    sw t0, 144(sp)
    mv a0, sp
    la sp, panic_stack_top
    call panic

    .bss
    .balign 16
panic_frame:
    .space 37 * 4
    .balign 16
    .space 1024
panic_stack_top:

    .text
    .global use_vectors
use_vectors:
    la t0, vectors
    ori t0, t0, 1
    csrw mtvec, t0
    ret
