/* The digests that images and partition tables carry. */
#pragma once

#include <stdint.h>

struct digest {
    uint32_t state[8];
    uint32_t size;
    uint8_t block[64];
};

void sha256_begin(struct digest *digest);
void sha256_add(struct digest *digest, const void *data, unsigned size);
void sha256_end(struct digest *digest, uint8_t result[32]);

void md5_begin(struct digest *digest);
void md5_add(struct digest *digest, const void *data, unsigned size);
void md5_end(struct digest *digest, uint8_t result[16]);
