#include "app.h"

__attribute__((section(".app_desc"), used)) const volatile struct app_desc app_desc = {
    .magic = 0xabcd5432,
    .version = VERSION,
    .project_name = "pytest_esp_test",
    .time = "00:00:00", /* constant, so that the same source gives the same image */
    .date = "Jan  1 2026",
    .idf_version = "none",
    .max_efuse_block_revision = 0xffff,
    .mmu_page_size_log2 = 16,
};

_Static_assert(sizeof(struct app_desc) == 256, "esp_app_desc_t has 256 bytes");

const char *elf_hash(void)
{
    static char text[10];
    for (int digit = 0; digit < 9; digit++)
        text[digit] = "0123456789abcdef"[app_desc.elf_sha256[digit / 2] >> (digit % 2 ? 0 : 4) & 15];
    return text;
}
