#include "text.h"

#include <stdarg.h>

#include "chip.h"

uint32_t divide(uint32_t dividend, uint32_t divisor, uint32_t *remainder)
{
    uint32_t quotient = 0;
    uint32_t rest = 0;
    for (int bit = 31; bit >= 0; bit--) {
        uint32_t carry = rest >> 31;
        rest = rest << 1 | (dividend >> bit & 1);
        if (carry || rest >= divisor) {
            rest -= divisor;
            quotient |= 1u << bit;
        }
    }
    if (remainder)
        *remainder = rest;
    return quotient;
}

static void put(char byte)
{
    if (byte == '\n')
        uart_put('\r');
    uart_put(byte);
}

static void put_padding(char byte, int count)
{
    while (count-- > 0)
        put(byte);
}

static char *digits_of(uint32_t value, unsigned base, char *end)
{
    *end = 0;
    do {
        uint32_t digit;
        value = divide(value, base, &digit);
        *--end = "0123456789abcdef"[digit];
    } while (value);
    return end;
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        int left = 0;
        int width = 0;
        char padding = ' ';
        for (format++; *format == '-' || *format == '0'; format++) {
            if (*format == '-')
                left = 1;
            else
                padding = '0';
        }
        for (; *format >= '0' && *format <= '9'; format++)
            width = width * 10 + *format - '0';
        char buffer[12];
        const char *text = buffer;
        buffer[1] = 0;
        uint32_t value;
        switch (*format) {
        case 'c':
            buffer[0] = va_arg(arguments, int);
            break;
        case 's':
            text = va_arg(arguments, const char *);
            break;
        case 'd':
            value = va_arg(arguments, uint32_t);
            text = digits_of((int32_t)value < 0 ? -value : value, 10, buffer + 11);
            if ((int32_t)value < 0)
                *(char *)--text = '-';
            break;
        case 'u':
        case 'x':
            text = digits_of(va_arg(arguments, uint32_t), *format == 'u' ? 10 : 16, buffer + 11);
            break;
        default:
            buffer[0] = *format;
        }
        int missing = width - (int)length(text);
        if (!left)
            put_padding(padding, missing);
        while (*text)
            put(*text++);
        if (left)
            put_padding(' ', missing);
    }
    va_end(arguments);
}

int starts_with(const char *text, const char *prefix)
{
    while (*prefix && *prefix == *text) {
        prefix++;
        text++;
    }
    return !*prefix;
}

int same(const char *a, const char *b)
{
    return length(a) == length(b) && starts_with(a, b);
}

int contains(const char *text, const char *part)
{
    for (; *text; text++)
        if (starts_with(text, part))
            return 1;
    return !*part;
}

unsigned length(const char *text)
{
    unsigned count = 0;
    while (text[count])
        count++;
    return count;
}

uint32_t number(const char *text)
{
    uint32_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + *text - '0';
    return value;
}

void *memcpy(void *to, const void *from, unsigned size)
{
    char *target = to;
    const char *source = from;
    while (size--)
        *target++ = *source++;
    return to;
}

void *memset(void *to, int byte, unsigned size)
{
    char *target = to;
    while (size--)
        *target++ = byte;
    return to;
}
