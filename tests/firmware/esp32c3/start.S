/* Where both programs begin: the ROM jumps to the loader, the loader to the app. */
    .section .text.start, "ax"
    .global _start
    .type _start, @function
_start:
    .cfi_startproc
    .cfi_undefined ra
    csrci mstatus, 8        /* no interrupts */
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la sp, stack_top
    la t0, bss_start
    la t1, bss_end
1:  bgeu t0, t1, 2f
    sw zero, 0(t0)
    addi t0, t0, 4
    j 1b
2:  .irp n, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    li x\n, 0               /* a panic shall not show what others left */
    .endr
    call main
3:  j 3b
    .cfi_endproc
    .size _start, . - _start
