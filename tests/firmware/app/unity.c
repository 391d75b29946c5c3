/* A test menu that speaks as Unity does with ESP-IDF's runner. */
#include "unity.h"

#include "app.h"
#include "chip.h"
#include "text.h"

#define FILE_OF_CASES "app/cases.c"

static struct {
    unsigned tests, failures, ignored;
    const struct test_case *current;
    int has_concluded; /* the case has failed or was ignored */
} unity;

static void print_result(int line, const char *result)
{
    print("%s:%d:%s:%s", FILE_OF_CASES, line, unity.current->name, result);
    unity.has_concluded = 1;
}

void unity_fail(int line, const char *format, uint32_t expected, uint32_t actual)
{
    print_result(line, "FAIL: ");
    print(format, expected, actual);
    print("\n");
    unity.failures++;
}

void unity_ignore(int line, const char *message)
{
    print_result(line, "IGNORE: ");
    print("%s\n", message);
    unity.ignored++;
}

void send_signal(const char *name)
{
    print("Send signal: [%s]!\n", name);
}

void wait_for_signal(const char *name)
{
    print("Waiting for signal: [%s]!\nPlease press \"Enter\" key once any board send this signal.\n", name);
    print("%s\n", read_line());
}

static void print_stages(const struct test_case *test)
{
    for (int stage = 0; stage < test->stages; stage++)
        print("\t(%d)\t\"%s\"\n", stage + 1, test->stage_names[stage]);
}

static void print_menu(void)
{
    print("\n\nHere's the test menu, pick your combo:\n");
    for (int number = 0; number < test_case_count; number++) {
        const struct test_case *test = &test_cases[number];
        print("(%d)\t\"%s\" %s\n", number + 1, test->name, test->tags);
        if (test->stages > 1)
            print_stages(test);
    }
    print("\nEnter test for running.\n");
}

static void run_stage(const struct test_case *test, int stage)
{
    unity.tests++;
    unity.current = test;
    unity.has_concluded = 0;
    test->run[stage]();
    if (!unity.has_concluded) {
        print_result(test->line, "PASS");
        print("\n");
    }
}

static void choose_stage(const struct test_case *test)
{
    char *line;
    do {
        print("%s\n", test->name);
        print_stages(test);
        line = read_line();
        print("%s\n", line);
    } while (!*line);
    uint32_t choice = number(line);
    if (choice < 1 || choice > (uint32_t)test->stages) {
        print("Invalid selection, your should input number 1-%d\n", test->stages);
        return;
    }
    print("Running stage %u...\n", (unsigned)choice);
    run_stage(test, choice - 1);
}

static void run_case(const struct test_case *test)
{
    print("Running %s...\n", test->name);
    if (test->stages > 1)
        choose_stage(test);
    else
        run_stage(test, 0);
}

static void run_number(uint32_t choice)
{
    if (choice < 1 || choice > (uint32_t)test_case_count)
        return;
    uint32_t start = chip_ms();
    run_case(&test_cases[choice - 1]);
    print("Test ran in %ums\n", (unsigned)(chip_ms() - start));
}

static void run_tagged(const char *tag, int invert)
{
    print("Running tests %smatching '%s'...\n", invert ? "NOT " : "", tag);
    for (int number = 0; number < test_case_count; number++)
        if (contains(test_cases[number].tags, tag) == !invert)
            run_case(&test_cases[number]);
}

static void run_named(char *name)
{
    for (unsigned at = length(name); at--;) {
        if (name[at] == '"') {
            name[at] = 0;
            break;
        }
    }
    for (int number = 0; number < test_case_count; number++)
        if (same(test_cases[number].name, name))
            run_case(&test_cases[number]);
}

static void run_selected(char *line)
{
    /* Its stages read lines of their own into the same buffer. */
    char selection[64];
    unsigned size = length(line) < sizeof selection ? length(line) : sizeof selection - 1;
    memcpy(selection, line, size);
    selection[size] = 0;
    int invert = selection[0] == '!';
    char *rest = selection + invert;
    if (*rest == '*') {
        for (int number = 0; number < test_case_count; number++)
            run_case(&test_cases[number]);
    } else if (*rest == '[') {
        run_tagged(rest, invert);
    } else if (*rest == '"') {
        run_named(rest + 1);
    } else {
        run_number(number(rest));
    }
}

void unity_welcome(void)
{
    print("\n\nPress ENTER to see the list of tests.\n");
}

void unity_select(char *line)
{
    print("%s\n", line);
    if (!*line) {
        print_menu();
        return;
    }
    unity.tests = unity.failures = unity.ignored = 0;
    run_selected(line);
    print("\n-----------------------\n%u Tests %u Failures %u Ignored \n%s\n", unity.tests, unity.failures,
          unity.ignored, unity.failures ? "FAIL" : "OK");
    print("Enter next test, or 'enter' to see menu\n");
}
