/* The CRC-32 of zlib and Ethernet. */
#pragma once

#include <stdint.h>

/* What ESP-IDF begins with: its checksums of otadata and NVS are those of zlib for data that goes on after this one. */
#define ESP_IDF_CRC 0xffffffff

/* The checksum of data, or of what had the checksum crc (0 for nothing) and this data after it. */
uint32_t crc32(uint32_t crc, const void *data, unsigned size);
