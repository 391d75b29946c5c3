/* The ESP32 as its technical reference manual describes it. The ROM has set up the UART (115200 baud) and the SPI
 * flash's pins; clocks stay as they are, and the second core stays in reset. */
#include "chip.h"

#include "text.h"

const char CHIP_NAME[] = "esp32";
const uint16_t CHIP_ID = 0;

#define SPI_BASE 0x3ff42000u
#define SPI_ADDR 0x04
#define SPI_USER 0x1c
#define SPI_USER1 0x20
#define SPI_USER2 0x24
#define SPI_MOSI_LENGTH 0x28
#define SPI_MISO_LENGTH 0x2c
#define SPI_W0 0x80
#define SPI_ADDR_SHIFT 8 /* it sends the upper bits */
#include "spi_controller.h"

#define UART_RX_FIFO 0x3ff40000u
#define UART_TX_FIFO 0x60000000u /* on the AHB bus: writes through the other address can get lost */
#define UART_STATUS 0x3ff4001cu

#define RTC_OPTIONS0 0x3ff48000u
#define RTC_TIME_UPDATE 0x3ff4800cu
#define RTC_TIME_LOW 0x3ff48010u
#define RTC_RESET_STATE 0x3ff48034u
#define RTC_WDT_CONFIG0 0x3ff4808cu
#define RTC_WDT_UNLOCK 0x3ff480a4u
#define TIMG0_WDT_CONFIG0 0x3ff5f048u
#define TIMG0_WDT_UNLOCK 0x3ff5f064u
#define WDT_KEY 0x50d83aa1u

#define EFUSE_BLOCK0 0x3ff5a000u
#define SYSCON_DATE 0x3ff6607cu

void chip_stop_watchdogs(void)
{
    *reg(RTC_WDT_UNLOCK) = WDT_KEY;
    *reg(RTC_WDT_CONFIG0) = 0;
    *reg(RTC_WDT_UNLOCK) = 0;
    *reg(TIMG0_WDT_UNLOCK) = WDT_KEY;
    *reg(TIMG0_WDT_CONFIG0) = 0;
    *reg(TIMG0_WDT_UNLOCK) = 0;
}

void chip_forbid_null(void)
{
    /* Region 0 of the protection unit, 0 to 0x1fffffff: attribute 15 is no access. */
    __asm__ volatile("wdtlb %0, %1\n\tdsync" ::"r"(15), "r"(0));
    __asm__ volatile("witlb %0, %1\n\tisync" ::"r"(15), "r"(0));
}

uint32_t chip_ms(void)
{
    *reg(RTC_TIME_UPDATE) = 1u << 31;
    while (!(*reg(RTC_TIME_UPDATE) & 1u << 30))
        ;
    return divide(*reg(RTC_TIME_LOW), 150, 0); /* the slow clock has 150 kHz, give or take some percent */
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
    uint32_t word3 = *reg(EFUSE_BLOCK0 + 4 * 3);
    uint32_t word5 = *reg(EFUSE_BLOCK0 + 4 * 5);
    unsigned bits = (word3 >> 15 & 1) | (word5 >> 20 & 1) << 1 | *reg(SYSCON_DATE) >> 31 << 2;
    unsigned major = bits == 7 ? 3 : bits == 3 ? 2 : bits == 1;
    return major * 100 + (word5 >> 24 & 3);
}

void chip_mac(uint8_t mac[6])
{
    uint32_t low = *reg(EFUSE_BLOCK0 + 4 * 1);
    uint32_t high = *reg(EFUSE_BLOCK0 + 4 * 2);
    for (int at = 0; at < 6; at++)
        mac[at] = at < 2 ? high >> (8 - 8 * at) : low >> (40 - 8 * at);
}

void uart_put(char byte)
{
    while ((*reg(UART_STATUS) >> 16 & 0xff) >= 126)
        ;
    *reg(UART_TX_FIFO) = (uint8_t)byte;
}

int uart_get(void)
{
    return *reg(UART_STATUS) & 0xff ? (int)(*reg(UART_RX_FIFO) & 0xff) : -1;
}

void uart_flush(void)
{
    while (*reg(UART_STATUS) >> 16 & 0xff)
        ;
    /* The last byte is still on the line. */
    for (uint32_t start = chip_ms(); chip_ms() - start < 2;)
        ;
}
