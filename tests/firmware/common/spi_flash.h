/* The SPI flash, through the controller that the CPU's cache does not use. Everything runs from RAM, so the cache is off
 * or idle while a sector is written. */
#pragma once

#include <stdint.h>

#define FLASH_SECTOR 0x1000

void flash_read(uint32_t address, void *data, unsigned size);
void flash_erase_sector(uint32_t address);

/* Writes up to 64 bytes within one page of 256. */
void flash_program(uint32_t address, const void *data, unsigned size);
