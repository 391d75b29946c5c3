/* What the app's files share. */
#pragma once

#include <stdint.h>

/* esp_app_desc_t of ESP-IDF: what an app says about itself in its image. */
struct app_desc {
    uint32_t magic;
    uint32_t secure_version;
    uint32_t reserved1[2];
    char version[32];
    char project_name[32];
    char time[16];
    char date[16];
    char idf_version[32];
    uint8_t elf_sha256[32];
    uint16_t min_efuse_block_revision;
    uint16_t max_efuse_block_revision;
    uint8_t mmu_page_size_log2;
    uint8_t reserved2[75];
};

/* Volatile: elf2image writes the hash after the compiler is done. */
extern const volatile struct app_desc app_desc;

/* The first nine hex digits of the ELF file's SHA-256. */
const char *elf_hash(void);

/* Waits for a line, and returns it without its end. */
char *read_line(void);

/* Three functions deep: a store to address 0. */
void crash(void);

/* As libc's: prints who called it, and panics. */
void abort(void) __attribute__((noreturn));

/* What abort() has to say; the panic handler prints it in place of the CPU's reason. */
extern uint32_t abort_pc;

/* The begin of every panic: one in a panic only restarts. */
void panic_begin(void);

/* The end of every panic: the ELF file's hash, then a restart. */
void panic_end(void) __attribute__((noreturn));

void unity_welcome(void);

/* Runs what the line selects: Unity's menu for an empty one. */
void unity_select(char *line);
