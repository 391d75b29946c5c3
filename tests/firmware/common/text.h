/* Text on the console. Every line feed goes out as CR LF, as ESP-IDF's console sends it. */
#pragma once

#include <stdint.h>



/* Knows %c %s %d %u %x and %%, with a width, 0 and - as flags. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A line of the log: "I (29) boot: text". */
#define LOG(level, tag, format, ...) print(level " (%u) " tag ": " format "\n", (unsigned)chip_ms(), ##__VA_ARGS__)
#define LOGI(tag, format, ...) LOG("I", tag, format, ##__VA_ARGS__)
#define LOGE(tag, format, ...) LOG("E", tag, format, ##__VA_ARGS__)

/* The quotient of two numbers; the ESP32's compiler, made for a CPU without a divider, has none. */
uint32_t divide(uint32_t dividend, uint32_t divisor, uint32_t *remainder);

int same(const char *a, const char *b);
int starts_with(const char *text, const char *prefix);
int contains(const char *text, const char *part);
unsigned length(const char *text);

/* The decimal number that text begins with; 0 if there is none. */
uint32_t number(const char *text);

void *memcpy(void *to, const void *from, unsigned size);
void *memset(void *to, int byte, unsigned size);
