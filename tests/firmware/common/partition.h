/* An entry of the partition table, as it lies in flash. */
#pragma once

#include <stdint.h>

#define TABLE_OFFSET 0x8000
#define TABLE_ENTRIES 96 /* with the one that holds the MD5 */
#define ENTRY_MAGIC 0x50aa
#define MD5_MAGIC 0xebeb

enum { TYPE_APP, TYPE_DATA };
enum {
    SUBTYPE_FACTORY = 0x00,
    SUBTYPE_OTA_0 = 0x10,
    SUBTYPE_TEST = 0x20,
    SUBTYPE_OTADATA = 0x00,
    SUBTYPE_NVS = 0x02,
};

struct partition {
    uint16_t magic;
    uint8_t type;
    uint8_t subtype;
    uint32_t offset;
    uint32_t size;
    char label[16];
    uint32_t flags;
};
