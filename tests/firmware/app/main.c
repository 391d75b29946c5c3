/* The console: one command per line, anything else is Unity's. */
#include "app.h"
#include "chip.h"
#include "nvs.h"
#include "retained.h"
#include "text.h"

void use_vectors(void);

#define FOREVER 0xffffffff

__attribute__((noinline)) static void flood(uint32_t bytes)
{
    /* Lines of 64 bytes, "00000000 ----...": what is written last is cut so that bytes were sent in all. */
    for (uint32_t line = 0; bytes; line++) {
        uint32_t size = bytes < 64 ? bytes : 64;
        uint32_t rest = line;
        char text[64];
        memset(text, '-', sizeof text);
        text[8] = ' ';
        for (int place = 7; place >= 0; place--) {
            uint32_t digit;
            rest = divide(rest, 10, &digit);
            text[place] = '0' + digit;
        }
        if (size > 1)
            text[size - 2] = '\r';
        text[size - 1] = '\n';
        for (uint32_t at = 0; at < size; at++)
            uart_put(text[at]);
        bytes -= size;
    }
}

static void print_mac(void)
{
    uint8_t mac[6];
    chip_mac(mac);
    print("%02x:%02x:%02x:%02x:%02x:%02x\n", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

/* "NAMESPACE KEY", or nothing. */
static void print_nvs(char *selection)
{
    for (char *at = selection; *at; at++) {
        if (*at == ' ') {
            *at = 0;
            nvs_print(selection, at + 1);
            return;
        }
    }
    nvs_print(0, 0);
}

static void hang(void)
{
    print("hanging\n");
    for (;;)
        ;
}

__attribute__((noinline)) static void run(char *line)
{
    if (starts_with(line, "echo ")) {
        print("%s\n", line + 5);
    } else if (same(line, "crash")) {
        crash();
    } else if (same(line, "abort")) {
        abort();
    } else if (starts_with(line, "flood ")) {
        flood(number(line + 6));
    } else if (same(line, "reboot")) {
        chip_restart();
    } else if (same(line, "hang")) {
        hang();
    } else if (same(line, "loop") || starts_with(line, "loop ")) {
        RETAINED->crashes_left = line[4] ? number(line + 5) : FOREVER;
        crash();
    } else if (same(line, "mac")) {
        print_mac();
    } else if (same(line, "nvs") || starts_with(line, "nvs ")) {
        print_nvs(line[3] ? line + 4 : line + 3);
    } else {
        unity_select(line);
    }
}

char *read_line(void)
{
    static char line[256];
    static int after_return;
    unsigned size = 0;
    for (;;) {
        int byte = uart_get();
        if (byte < 0)
            continue;
        int is_end = byte == '\r' || (byte == '\n' && !after_return);
        int is_second = byte == '\n' && after_return; /* of CR LF */
        after_return = byte == '\r';
        if (is_end) {
            line[size] = 0;
            return line;
        }
        if (is_second)
            continue;
        if (byte == '\b' || byte == 0x7f)
            size -= size > 0;
        else if (size < sizeof line - 1)
            line[size++] = byte;
    }
}

static void print_description(void)
{
    const struct app_desc *app = (const struct app_desc *)&app_desc;
    LOGI("app_init", "Application information:");
    LOGI("app_init", "Project name:     %s", app->project_name);
    LOGI("app_init", "App version:      %s", app->version);
    LOGI("app_init", "Compile time:     %s %s", app->date, app->time);
    LOGI("app_init", "ELF file SHA256:  %s...", elf_hash());
    LOGI("app_init", "ESP-IDF:          %s", app->idf_version);
    uint32_t minor;
    uint32_t major = divide(chip_revision(), 100, &minor);
    LOGI("efuse_init", "Min chip rev:     v0.0"); /* what elf2image writes into the image unless it is told more */
    LOGI("efuse_init", "Chip rev:         v%u.%u", (unsigned)major, (unsigned)minor);
}

void main(void)
{
    use_vectors();
    chip_forbid_null();
    chip_stop_watchdogs();
    print_description();
    LOGI("main_task", "Calling app_main()");
    if (RETAINED->magic != RETAINED_MAGIC) {
        RETAINED->magic = RETAINED_MAGIC;
        RETAINED->crashes_left = 0;
        RETAINED->stored = 0;
    }
    char slot[17];
    for (unsigned at = 0; at < sizeof slot; at++)
        slot[at] = RETAINED->slot[at];
    print("pytest-esp test firmware " VERSION " on %s, slot %s\n", CHIP_NAME, slot);
    if (RETAINED->crashes_left) {
        if (RETAINED->crashes_left != FOREVER)
            RETAINED->crashes_left--;
        crash();
    }
    print("ready\n");
    unity_welcome();
    for (;;)
        run(read_line());
}
