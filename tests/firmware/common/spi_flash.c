#include "spi_flash.h"

#include "chip.h"

/* JEDEC's basic commands, which every flash chip of Espressif's modules knows. */
enum {
    WRITE_ENABLE = 0x06,
    READ_STATUS = 0x05,
    READ = 0x03,
    PAGE_PROGRAM = 0x02,
    SECTOR_ERASE = 0x20,
};

#define BUSY 0x01
#define FIFO 64 /* bytes of one transaction */

void flash_read(uint32_t address, void *data, unsigned size)
{
    uint8_t *to = data;
    while (size) {
        unsigned part = size < FIFO ? size : FIFO;
        spi_flash_command(READ, address, 0, 0, to, part);
        address += part;
        to += part;
        size -= part;
    }
}

static void wait_until_ready(void)
{
    uint8_t status;
    do {
        spi_flash_command(READ_STATUS, -1, 0, 0, &status, 1);
    } while (status & BUSY);
}

void flash_erase_sector(uint32_t address)
{
    spi_flash_command(WRITE_ENABLE, -1, 0, 0, 0, 0);
    spi_flash_command(SECTOR_ERASE, address, 0, 0, 0, 0);
    wait_until_ready();
}

void flash_program(uint32_t address, const void *data, unsigned size)
{
    spi_flash_command(WRITE_ENABLE, -1, 0, 0, 0, 0);
    spi_flash_command(PAGE_PROGRAM, address, data, size, 0, 0);
    wait_until_ready();
}
