/* SHA-256 as FIPS 180-4 defines it, and MD5 as RFC 1321 does. */
#include "digest.h"

#include "text.h"

typedef void (*Transform)(uint32_t *state, const uint8_t *block);

static uint32_t rotate_left(uint32_t word, unsigned bits)
{
    return word << bits | word >> (32 - bits);
}

static uint32_t rotate_right(uint32_t word, unsigned bits)
{
    return rotate_left(word, 32 - bits);
}

static void add(struct digest *digest, const void *data, unsigned size, Transform transform)
{
    for (const uint8_t *byte = data; size--; byte++) {
        digest->block[digest->size++ % 64] = *byte;
        if (digest->size % 64 == 0)
            transform(digest->state, digest->block);
    }
}

/* A one bit, zeros, and the count of bits in the last 8 bytes of a block; sizes here are far below 512 MB. */
static void pad(struct digest *digest, Transform transform, int big_endian)
{
    uint32_t bits = digest->size * 8;
    add(digest, "\x80", 1, transform);
    while (digest->size % 64 != 56)
        add(digest, "", 1, transform);
    for (int at = 0; at < 8; at++) {
        int place = big_endian ? 7 - at : at;
        uint8_t byte = place < 4 ? bits >> 8 * place : 0;
        add(digest, &byte, 1, transform);
    }
}

static const uint32_t sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static void sha256_transform(uint32_t *state, const uint8_t *block)
{
    uint32_t w[64];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | block[4 * t + 1] << 16 | block[4 * t + 2] << 8 | block[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        uint32_t s0 = rotate_right(w[t - 15], 7) ^ rotate_right(w[t - 15], 18) ^ w[t - 15] >> 3;
        uint32_t s1 = rotate_right(w[t - 2], 17) ^ rotate_right(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    uint32_t v[8]; /* a to h */
    memcpy(v, state, sizeof v);
    for (int t = 0; t < 64; t++) {
        uint32_t s1 = rotate_right(v[4], 6) ^ rotate_right(v[4], 11) ^ rotate_right(v[4], 25);
        uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
        uint32_t t1 = v[7] + s1 + choice + sha256_k[t] + w[t];
        uint32_t s0 = rotate_right(v[0], 2) ^ rotate_right(v[0], 13) ^ rotate_right(v[0], 22);
        uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
        for (int at = 7; at > 0; at--)
            v[at] = v[at - 1];
        v[4] += t1;
        v[0] = t1 + s0 + majority;
    }
    for (int at = 0; at < 8; at++)
        state[at] += v[at];
}

void sha256_begin(struct digest *digest)
{
    static const uint32_t initial[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    memcpy(digest->state, initial, sizeof initial);
    digest->size = 0;
}

void sha256_add(struct digest *digest, const void *data, unsigned size)
{
    add(digest, data, size, sha256_transform);
}

void sha256_end(struct digest *digest, uint8_t result[32])
{
    pad(digest, sha256_transform, 1);
    for (int at = 0; at < 32; at++)
        result[at] = digest->state[at / 4] >> (24 - at % 4 * 8);
}

static const uint32_t md5_t[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
};

static void md5_transform(uint32_t *state, const uint8_t *block)
{
    static const uint8_t shifts[4][4] = {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    for (int step = 0; step < 64; step++) {
        int round = step / 16;
        uint32_t f;
        int word;
        if (round == 0) {
            f = (b & c) | (~b & d);
            word = step;
        } else if (round == 1) {
            f = (b & d) | (c & ~d);
            word = 5 * step + 1;
        } else if (round == 2) {
            f = b ^ c ^ d;
            word = 3 * step + 5;
        } else {
            f = c ^ (b | ~d);
            word = 7 * step;
        }
        const uint8_t *at = &block[word % 16 * 4];
        uint32_t x = at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24;
        uint32_t next = b + rotate_left(a + f + x + md5_t[step], shifts[round][step % 4]);
        a = d;
        d = c;
        c = b;
        b = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

void md5_begin(struct digest *digest)
{
    digest->state[0] = 0x67452301;
    digest->state[1] = 0xefcdab89;
    digest->state[2] = 0x98badcfe;
    digest->state[3] = 0x10325476;
    digest->size = 0;
}

void md5_add(struct digest *digest, const void *data, unsigned size)
{
    add(digest, data, size, md5_transform);
}

void md5_end(struct digest *digest, uint8_t result[16])
{
    pad(digest, md5_transform, 0);
    for (int at = 0; at < 16; at++)
        result[at] = digest->state[at / 4] >> at % 4 * 8;
}
