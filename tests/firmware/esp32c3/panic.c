/* The panic of a RISC-V core, as ESP-IDF prints it. */
#include "app.h"
#include "text.h"

/* As vectors.S stores them: x1 to x31, then the control registers. */
struct frame {
    uint32_t x[31];
    uint32_t mepc, mstatus, mtvec, mcause, mtval, mhartid;
};

static const char *const reasons[] = {
    "Instruction address misaligned", "Instruction access fault", "Illegal instruction",  "Breakpoint",
    "Load address misaligned",        "Load access fault",        "Store address misaligned", "Store access fault",
};

static void print_registers(const struct frame *frame)
{
    static const char *const names[] = {
        "MEPC",    "RA",    "SP",     "GP",    "TP", "T0", "T1", "T2", "S0/FP", "S1", "A0", "A1",
        "A2",      "A3",    "A4",     "A5",    "A6", "A7", "S2", "S3", "S4",    "S5", "S6", "S7",
        "S8",      "S9",    "S10",    "S11",   "T3", "T4", "T5", "T6", "MSTATUS", "MTVEC", "MCAUSE", "MTVAL",
        "MHARTID",
    };
    print("Core  0 register dump:\n");
    for (unsigned number = 0; number < sizeof names / sizeof *names; number++) {
        uint32_t value = number == 0    ? frame->mepc
                         : number <= 31 ? frame->x[number - 1]
                                        : (&frame->mstatus)[number - 32];
        print("%-8s: 0x%08x  %s", names[number], (unsigned)value, number % 4 == 3 ? "\n" : "");
    }
}

static void print_stack(uint32_t sp)
{
    print("\n\nStack memory:\n");
    for (uint32_t at = sp; at < sp + 1024; at += 32) {
        const uint32_t *words = (const uint32_t *)at;
        print("%08x:", (unsigned)at);
        for (int word = 0; word < 8; word++)
            print(" 0x%08x", (unsigned)words[word]);
        print("\n");
    }
}

void panic(const struct frame *frame)
{
    panic_begin();
    if (!abort_pc) {
        const char *reason = frame->mcause < 8 ? reasons[frame->mcause] : "Unknown reason";
        print("Guru Meditation Error: Core  0 panic'ed (%s). Exception was unhandled.\n\n", reason);
    }
    print_registers(frame);
    print_stack(frame->x[1]);
    panic_end();
}
