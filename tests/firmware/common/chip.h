/* What the programs ask of a chip; esp32c3/chip.c and esp32/chip.c answer. */
#pragma once

#include <stdint.h>

extern const char CHIP_NAME[];
extern const uint16_t CHIP_ID; /* as image headers give it */

/* Stops the watchdogs that the ROM leaves running for the time of a boot. */
void chip_stop_watchdogs(void);

/* Makes a load or store near address 0 an exception, as ESP-IDF's start-up code does. */
void chip_forbid_null(void);

/* Milliseconds since the chip was powered. */
uint32_t chip_ms(void);

/* Restarts the CPU, as esp_restart() does: the ROM prints reset reason 0xc. */
void chip_restart(void) __attribute__((noreturn));

/* Whether the last reset was one by software, after which RTC memory holds what it held. */
int chip_was_restarted(void);

/* Major * 100 + minor. */
unsigned chip_revision(void);

/* The base MAC address in the eFuses. */
void chip_mac(uint8_t mac[6]);

void uart_put(char byte);
int uart_get(void); /* -1: nothing there */
void uart_flush(void);

/* One transaction of the SPI flash's controller: command, 24-bit address if it is not negative, data out or in. */
void spi_flash_command(uint8_t command, int32_t address, const void *out, unsigned out_size, void *in, unsigned in_size);

static inline volatile uint32_t *reg(uint32_t address)
{
    return (volatile uint32_t *)address;
}
