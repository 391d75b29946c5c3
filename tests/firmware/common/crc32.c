#include "crc32.h"

uint32_t crc32(uint32_t crc, const void *data, unsigned size)
{
    crc = ~crc;
    for (const uint8_t *byte = data; size--; byte++) {
        crc ^= *byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}
