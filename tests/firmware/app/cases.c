/* The cases of the test menu: one for each way in which a case can end. */
#include "app.h"
#include "chip.h"
#include "retained.h"
#include "unity.h"

#define STORED 0x600dcafe

static void addition_holds(void)
{
    volatile uint32_t two = 2;
    TEST_ASSERT_EQUAL(4, two + 2);
}

static void memory_keeps_a_pattern(void)
{
    static volatile uint32_t memory[64];
    for (uint32_t at = 0; at < 64; at++)
        memory[at] = at * 0x01010101;
    for (uint32_t at = 0; at < 64; at++)
        TEST_ASSERT_EQUAL(at * 0x01010101, memory[at]);
}

static void one_is_two(void)
{
    volatile uint32_t two = 2;
    TEST_ASSERT_EQUAL(1, two);
}

static void not_now(void)
{
    TEST_IGNORE_MESSAGE("not now");
}

static void crashes(void)
{
    crash();
}

static void hangs(void)
{
    for (;;)
        ;
}

static void store_and_restart(void)
{
    RETAINED->stored = STORED;
    chip_restart();
}

static void find_what_was_stored(void)
{
    uint32_t found = RETAINED->stored;
    RETAINED->stored = 0;
    TEST_ASSERT_EQUAL(1, found == STORED);
}

static void speak_first(void)
{
    send_signal("first is up");
    wait_for_signal("second has answered");
}

static void answer(void)
{
    wait_for_signal("first is up");
    send_signal("second has answered");
}

#define CASE(name, tags, function) {name, tags, __LINE__, 1, {function}, {0}}
#define STAGES(name, tags, first, second) {name, tags, __LINE__, 2, {first, second}, {#first, #second}}

const struct test_case test_cases[] = {
    CASE("addition holds", "[math]", addition_holds),
    CASE("memory keeps a pattern", "[memory]", memory_keeps_a_pattern),
    CASE("one is two", "[math][wrong]", one_is_two),
    CASE("case is ignored", "[memory]", not_now),
    CASE("case crashes", "[fatal][timeout=10]", crashes),
    CASE("case hangs", "[fatal][timeout=5]", hangs),
    STAGES("memory survives a restart", "[restart][multi_stage]", store_and_restart, find_what_was_stored),
    STAGES("two boards talk", "[signals][timeout=30][multi_device]", speak_first, answer),
};

const int test_case_count = sizeof test_cases / sizeof *test_cases;
