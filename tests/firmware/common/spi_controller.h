/* A "user" transaction of the flash's SPI controller, the way esptool makes them from a host (run_spiflash_command in
 * its loader.py). The controller is the same on both chips but for its addresses, which the including chip.c defines. */
#pragma once

#include "chip.h"
#include "text.h"

#define SPI_CMD_USER (1u << 18)
#define SPI_USER_COMMAND (1u << 31)
#define SPI_USER_ADDRESS (1u << 30)
#define SPI_USER_MISO (1u << 28)
#define SPI_USER_MOSI (1u << 27)

void spi_flash_command(uint8_t command, int32_t address, const void *out, unsigned out_size, void *in, unsigned in_size)
{
    volatile uint32_t *fifo = reg(SPI_BASE + SPI_W0);
    uint32_t user = SPI_USER_COMMAND;
    if (address >= 0) {
        user |= SPI_USER_ADDRESS;
        *reg(SPI_BASE + SPI_USER1) = 23u << 26; /* bits of the address - 1 */
        *reg(SPI_BASE + SPI_ADDR) = (uint32_t)address << SPI_ADDR_SHIFT;
    }
    if (out_size) {
        user |= SPI_USER_MOSI;
        *reg(SPI_BASE + SPI_MOSI_LENGTH) = out_size * 8 - 1;
        for (unsigned at = 0; at < out_size; at += 4) {
            uint32_t word = 0xffffffff;
            memcpy(&word, (const uint8_t *)out + at, out_size - at < 4 ? out_size - at : 4);
            fifo[at / 4] = word;
        }
    }
    if (in_size) {
        user |= SPI_USER_MISO;
        *reg(SPI_BASE + SPI_MISO_LENGTH) = in_size * 8 - 1;
    }
    *reg(SPI_BASE + SPI_USER) = user;
    *reg(SPI_BASE + SPI_USER2) = 7u << 28 | command; /* bits of the command - 1 */
    *reg(SPI_BASE) = SPI_CMD_USER;
    while (*reg(SPI_BASE) & SPI_CMD_USER)
        ;
    for (unsigned at = 0; at < in_size; at += 4) {
        uint32_t word = fifo[at / 4];
        memcpy((uint8_t *)in + at, &word, in_size - at < 4 ? in_size - at : 4);
    }
}
