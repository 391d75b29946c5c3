/* Ways to die. Nothing here may be inlined: a backtrace shall show the whole way. */
#include "app.h"

#include "chip.h"
#include "text.h"

#ifdef __riscv
#define PANIC_INSTRUCTION __asm__ volatile("unimp")
#else
#define PANIC_INSTRUCTION __asm__ volatile("ill")
#endif

#define FRAME __attribute__((noinline, noclone))

uint32_t abort_pc;

static FRAME void store_through(volatile uint32_t *pointer)
{
    volatile uint32_t *volatile kept = pointer; /* gives it a frame on the stack, which the ESP32's backtrace needs */
    *kept = 0xdead;
}

static FRAME void pass_null(uint32_t *pointer)
{
    store_through(pointer);
    __asm__ volatile(""); /* no tail call */
}

FRAME void crash(void)
{
    uint32_t *nothing = 0;
    __asm__ volatile("" : "+r"(nothing)); /* the compiler must not know it */
    pass_null(nothing);
    __asm__ volatile("");
}

FRAME void abort(void)
{
    abort_pc = (uint32_t)__builtin_return_address(0) - 3;
    print("\nabort() was called at PC 0x%08x on core 0\n", (unsigned)abort_pc);
    PANIC_INSTRUCTION;
    __builtin_unreachable();
}

void panic_begin(void)
{
    static int has_begun;
    if (has_begun)
        chip_restart();
    has_begun = 1;
}

void panic_end(void)
{
    print("\n\n\nELF file SHA256: %s\n\nRebooting...\n", elf_hash());
    chip_restart();
}
