/* Where both programs begin: the ROM jumps to the loader, the loader to the app. */
    .section .text.start, "ax"
    .balign 4
    .literal_position
    .global _start
    .type _start, @function
_start:
    movi a2, 0x2f           /* no interrupts, no register windows; exceptions go to the user vector */
    wsr.ps a2
    rsync
    movi a1, stack_top
    movi a2, bss_start
    movi a3, bss_end
    movi a4, 0
1:  bgeu a2, a3, 2f
    s32i a4, a2, 0
    addi a2, a2, 4
    j 1b
2:  .irp n, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movi a\n, 0             /* a panic shall not show what others left */
    .endr
    call0 main
    .global after_main      /* where a backtrace ends */
after_main:
    j after_main
    .size _start, . - _start
