/* A program for the RAM of a chip in its ROM's loader: it tests what the chip needs to run anything, and says how it
 * went on the console. See README.md for what it prints. */
#include "chip.h"
#include "text.h"

#define RAM_SIZE 0x10000u /* bytes that are tested: none of them holds this program, or what the ROM needs */
#define TIMER_MS 20u
#define LONGEST_WAIT 50000000u /* turns of a loop, so that a timer that stands still cannot stop the test */
#define LONGEST_LINE 256u

extern uint32_t ram_test_start[];
extern const uint8_t code_start[], code_end[];

static unsigned passed, failed;

static void say(const char *name, int good)
{
    print("%s: %s ", name, good ? "PASS" : "FAIL");
    if (good)
        passed++;
    else
        failed++;
}

static uint32_t crc32(uint32_t crc, const volatile uint8_t *data, unsigned size)
{
    crc = ~crc;
    while (size--) {
        crc ^= *data++;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/* March: up with a pattern, up again with its complement, down with the address. Returns the first bad word. */
static volatile uint32_t *bad_word(void)
{
    volatile uint32_t *start = ram_test_start, *end = start + RAM_SIZE / 4;
    for (volatile uint32_t *word = start; word < end; word++)
        *word = 0x55aa33cc;
    for (volatile uint32_t *word = start; word < end; word++) {
        if (*word != 0x55aa33cc)
            return word;
        *word = 0xaa55cc33;
    }
    for (volatile uint32_t *word = end; word-- > start;) {
        if (*word != 0xaa55cc33)
            return word;
        *word = (uint32_t)word;
    }
    for (volatile uint32_t *word = start; word < end; word++)
        if (*word != (uint32_t)word)
            return word;
    return 0;
}

static void test_ram(void)
{
    volatile uint32_t *bad = bad_word();
    say("ram", !bad);
    if (bad)
        print("0x%08x holds 0x%08x\n", (unsigned)bad, (unsigned)*bad);
    else
        print("%u bytes from 0x%08x\n", RAM_SIZE, (unsigned)ram_test_start);
}

/* Of a known text, and of this program itself: whoever loaded it can compare. */
static void test_crc(void)
{
    uint32_t known = crc32(0, (const uint8_t *)"123456789", 9);
    say("crc", known == 0xcbf43926);
    print("0x%08x code 0x%08x..0x%08x 0x%08x\n", (unsigned)known, (unsigned)code_start, (unsigned)code_end,
          (unsigned)crc32(0, code_start, code_end - code_start));
}

static void test_timer(void)
{
    uint32_t start = chip_ms(), now = start, turns = 0;
    int backwards = 0;
    while (now - start < TIMER_MS && turns++ < LONGEST_WAIT) {
        uint32_t next = chip_ms();
        backwards |= next < now;
        now = next;
    }
    say("timer", !backwards && now - start >= TIMER_MS && turns > 1);
    print("%u ms in %u reads\n", (unsigned)(now - start), (unsigned)turns);
}

/* Takes a line and answers with its length and CRC. */
static void take_line(void)
{
    static uint8_t line[LONGEST_LINE];
    unsigned size = 0;
    for (;;) {
        int byte = uart_get();
        if (byte < 0 || byte == '\r')
            continue;
        if (byte == '\n')
            break;
        if (size < LONGEST_LINE)
            line[size++] = byte;
    }
    say("uart", size > 0);
    print("%u bytes 0x%08x\n", size, (unsigned)crc32(0, line, size));
}

void main(void)
{
    chip_stop_watchdogs();
    print("\npytest-esp self-test " VERSION " on %s, revision %u\n", CHIP_NAME, chip_revision());
    test_ram();
    test_crc();
    test_timer();
    print("uart: send a line\n");
    take_line();
    print("self-test: %s %u of %u\n", failed ? "FAIL" : "PASS", passed, passed + failed);
    for (;;)
        take_line();
}
