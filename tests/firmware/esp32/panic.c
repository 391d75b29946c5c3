/* The panic of an Xtensa core, as ESP-IDF prints it. */
#include "app.h"
#include "text.h"

/* As vectors.S stores them. */
struct frame {
    uint32_t pc, ps, a[16], sar, exccause, excvaddr, lbeg, lend, lcount;
};

extern char vectors[], after_main[];

static const char *reason(uint32_t cause)
{
    switch (cause) {
    case 0:
        return "IllegalInstruction";
    case 2:
        return "InstructionFetchError";
    case 3:
        return "LoadStoreError";
    case 6:
        return "IntegerDivideByZero";
    case 9:
        return "LoadStoreAlignment";
    case 20:
        return "InstrFetchProhibited";
    case 28:
        return "LoadProhibited";
    case 29:
        return "StoreProhibited";
    }
    return "Unknown";
}

static void print_registers(const struct frame *frame)
{
    static const char *const names[] = {
        "PC",  "PS",  "A0",  "A1",  "A2",  "A3",  "A4",  "A5",       "A6",       "A7",   "A8",   "A9",
        "A10", "A11", "A12", "A13", "A14", "A15", "SAR", "EXCCAUSE", "EXCVADDR", "LBEG", "LEND", "LCOUNT",
    };
    print("Core  0 register dump:\n");
    for (unsigned number = 0; number < sizeof names / sizeof *names; number++)
        print("%-8s: 0x%08x  %s", names[number], (unsigned)(&frame->pc)[number], number % 4 == 3 ? "\n" : "");
}

/* Code RAM can be read by words only. */
static uint8_t code_at(uint32_t address)
{
    return *(volatile uint32_t *)(address & ~3u) >> (address & 3) * 8;
}

/* Where the function around pc begins: at its "addi a1, a1, -size", which makes its frame; 0 if there is none. A
 * function without a frame would be taken for the one before it; none that crashes is without. */
static uint32_t begin_of_function(uint32_t pc)
{
    for (uint32_t at = pc & ~3u; at >= (uint32_t)vectors + 0x400; at -= 4)
        if (code_at(at) == 0x12 && code_at(at + 1) == 0xc1 && code_at(at + 2) & 0x80)
            return at;
    return 0;
}

/* Where in its frame the function has put its return address before pc: its "s32i.n a0, a1, place" or
 * "s32i a0, a1, place"; -1 if it has not. */
static int place_of_return(uint32_t begin, uint32_t pc)
{
    for (uint32_t at = begin; at < pc && at < begin + 32;) {
        uint8_t first = code_at(at);
        uint8_t second = code_at(at + 1);
        if (first == 0x09 && (second & 15) == 1)
            return (second >> 4) * 4;
        if (first == 0x02 && second == 0x61)
            return code_at(at + 2) * 4;
        at += (first & 15) >= 8 ? 2 : 3; /* narrow instructions have 8 to 13 there */
    }
    return -1;
}

static void print_backtrace(uint32_t pc, uint32_t sp, uint32_t a0)
{
    print("\n\nBacktrace:");
    for (int depth = 0; pc != (uint32_t)after_main; depth++) {
        print(" 0x%08x:0x%08x", (unsigned)(pc - 3), (unsigned)sp);
        uint32_t begin = begin_of_function(pc);
        int place = begin ? place_of_return(begin, pc) : -1;
        if (depth == 32 || !begin || (place < 0 && depth > 0)) {
            print(" |<-CORRUPTED");
            break;
        }
        pc = place < 0 ? a0 : *(uint32_t *)(sp + place);
        sp += 256 - code_at(begin + 2);
    }
    print("\n\n");
}

void panic(const struct frame *frame)
{
    panic_begin();
    if (!abort_pc) {
        print("Guru Meditation Error: Core  0 panic'ed (%s). Exception was unhandled.\n\n", reason(frame->exccause));
        print_registers(frame);
    }
    print_backtrace(frame->pc, frame->a[1], frame->a[0]);
    panic_end();
}
