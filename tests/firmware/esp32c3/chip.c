/* The ESP32-C3 as its technical reference manual describes it. The ROM has set up the UART (115200 baud) and the SPI
 * flash's pins; clocks stay as they are. */
#include "chip.h"

#include "text.h"

const char CHIP_NAME[] = "esp32c3";
const uint16_t CHIP_ID = 5;

#define SPI_BASE 0x60002000u
#define SPI_ADDR 0x04
#define SPI_USER 0x18
#define SPI_USER1 0x1c
#define SPI_USER2 0x20
#define SPI_MOSI_LENGTH 0x24
#define SPI_MISO_LENGTH 0x28
#define SPI_W0 0x58
#define SPI_ADDR_SHIFT 0
#include "spi_controller.h"

#define UART_FIFO 0x60000000u
#define UART_STATUS 0x6000001cu

#define RTC_OPTIONS0 0x60008000u
#define RTC_RESET_STATE 0x60008038u
#define RTC_WDT_CONFIG0 0x60008090u
#define RTC_WDT_UNLOCK 0x600080a8u
#define RTC_SWD_CONFIG 0x600080acu
#define RTC_SWD_UNLOCK 0x600080b0u
#define TIMG0_WDT_CONFIG0 0x6001f048u
#define TIMG0_WDT_UNLOCK 0x6001f064u
#define WDT_KEY 0x50d83aa1u
#define SWD_KEY 0x8f1d312au

#define EFUSE_BLOCK1 0x60008844u
#define SYSTIMER_UNIT0_OP 0x60023004u
#define SYSTIMER_UNIT0_HIGH 0x60023040u
#define SYSTIMER_UNIT0_LOW 0x60023044u

void chip_stop_watchdogs(void)
{
    *reg(RTC_WDT_UNLOCK) = WDT_KEY;
    *reg(RTC_WDT_CONFIG0) = 0;
    *reg(RTC_WDT_UNLOCK) = 0;
    *reg(RTC_SWD_UNLOCK) = SWD_KEY;
    *reg(RTC_SWD_CONFIG) |= 1u << 31; /* feeds itself */
    *reg(RTC_SWD_UNLOCK) = 0;
    *reg(TIMG0_WDT_UNLOCK) = WDT_KEY;
    *reg(TIMG0_WDT_CONFIG0) = 1u << 22; /* off; take the configuration over */
    *reg(TIMG0_WDT_UNLOCK) = 0;
}

void chip_forbid_null(void)
{
    /* Entry 0 of the physical memory protection: everything below 0x10000000, no access, locked so that it holds in
     * machine mode. */
    __asm__ volatile("csrw pmpaddr0, %0" ::"r"(0x10000000u >> 2));
    __asm__ volatile("csrw pmpcfg0, %0" ::"r"(0x88));
}

uint32_t chip_ms(void)
{
    *reg(SYSTIMER_UNIT0_OP) = 1u << 30; /* latch */
    while (!(*reg(SYSTIMER_UNIT0_OP) & 1u << 29))
        ;
    /* 16 MHz, 52 bits: 16000 ticks are a millisecond. */
    uint32_t ticks_128 = *reg(SYSTIMER_UNIT0_HIGH) << 25 | *reg(SYSTIMER_UNIT0_LOW) >> 7;
    return ticks_128 / 125;
}

void chip_restart(void)
{
    uart_flush();
    *reg(RTC_OPTIONS0) |= 1u << 5;
    for (;;)
        ;
}

int chip_was_restarted(void)
{
    return (*reg(RTC_RESET_STATE) & 0x3f) == 0xc;
}

unsigned chip_revision(void)
{
    uint32_t word3 = *reg(EFUSE_BLOCK1 + 4 * 3);
    uint32_t word5 = *reg(EFUSE_BLOCK1 + 4 * 5);
    unsigned minor = (word5 >> 23 & 1) << 3 | (word3 >> 18 & 7);
    return (word5 >> 24 & 3) * 100 + minor;
}

void chip_mac(uint8_t mac[6])
{
    uint32_t low = *reg(EFUSE_BLOCK1);
    uint32_t high = *reg(EFUSE_BLOCK1 + 4);
    for (int at = 0; at < 6; at++)
        mac[at] = at < 2 ? high >> (8 - 8 * at) : low >> (40 - 8 * at);
}

void uart_put(char byte)
{
    while ((*reg(UART_STATUS) >> 16 & 0x3ff) >= 126)
        ;
    *reg(UART_FIFO) = (uint8_t)byte;
}

int uart_get(void)
{
    return *reg(UART_STATUS) & 0x3ff ? (int)(*reg(UART_FIFO) & 0xff) : -1;
}

void uart_flush(void)
{
    while (*reg(UART_STATUS) >> 16 & 0x3ff)
        ;
    /* The last byte is still on the line. */
    for (uint32_t start = chip_ms(); chip_ms() - start < 2;)
        ;
}
