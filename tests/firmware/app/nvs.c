/* The format: "Non-Volatile Storage Library", section "Internals", of ESP-IDF's programming guide. What ESP-IDF's library
 * does not give to an app is not a value here either; the library repairs, this only reads and tells. */
#include "nvs.h"

#include "chip.h"
#include "crc32.h"
#include "partition.h"
#include "spi_flash.h"
#include "text.h"

#define PAGE 0x1000
#define ENTRY 32
#define FIRST_ENTRY 64 /* after the header and the states */
#define ENTRIES 126    /* of a page */
#define MAX_PAGES 64
#define MAX_ITEMS 1024
#define SHORT_BLOB 32 /* bytes that a list of all values shows */
#define OLDEST_VERSION 0xff
#define NEWEST_VERSION 0xfe

enum { PAGE_ACTIVE = 0xfffffffe, PAGE_FULL = 0xfffffffc, PAGE_FREEING = 0xfffffff8, PAGE_EMPTY = 0xffffffff };
enum { ENTRY_WRITTEN = 2, ENTRY_EMPTY = 3 };
enum { STRING = 0x21, OLD_BLOB = 0x41, BLOB_DATA = 0x42, BLOB_INDEX = 0x48 };

struct page_header {
    uint32_t state;
    uint32_t sequence;
    uint8_t version;
    uint8_t unused[19];
    uint32_t crc; /* of what lies between it and the state */
};

struct entry {
    uint8_t name_space; /* 0: this entry names one, whose number is its value */
    uint8_t type;
    uint8_t span; /* entries, with those of the data that follows */
    uint8_t chunk;
    uint32_t crc; /* of the rest of these 32 bytes */
    char key[16];
    union {
        uint8_t number[8];
        struct {
            uint16_t size;
            uint16_t unused;
            uint32_t crc;
        } data; /* of a string, an old blob, or a chunk of a blob: it lies in the entries that follow */
        struct {
            uint32_t size;
            uint8_t chunks;
            uint8_t first_chunk;
        } blob;
    };
};

_Static_assert(sizeof(struct page_header) == ENTRY && sizeof(struct entry) == ENTRY, "as in flash");

struct item {
    uint32_t address; /* of its entry in flash */
    uint8_t name_space;
    uint8_t type;
    uint8_t chunk;
    uint8_t is_old; /* a newer one has taken its place */
    char key[16];
};

static struct {
    uint32_t offset[MAX_PAGES]; /* in flash, by sequence number */
    uint32_t sequence[MAX_PAGES];
    unsigned pages;
    struct item items[MAX_ITEMS]; /* in the order in which they were written */
    unsigned size;
    char names[256][16]; /* of namespaces; empty if there is none */
    unsigned values, problems;
} nvs;

#define PROBLEM(...) (nvs.problems++, print("nvs: " __VA_ARGS__), print("\n"))

static int find_partition(struct partition *part)
{
    for (unsigned number = 0; number < TABLE_ENTRIES; number++) {
        flash_read(TABLE_OFFSET + number * sizeof *part, part, sizeof *part);
        if (part->magic != ENTRY_MAGIC)
            return 0;
        part->flags = 0; /* so that a label of 16 characters ends */
        if (part->type == TYPE_DATA && part->subtype == SUBTYPE_NVS && same(part->label, "nvs"))
            return 1;
    }
    return 0;
}

/* -- pages */

static int is_blank(uint32_t offset)
{
    for (uint32_t at = 0; at < PAGE; at += ENTRY) {
        uint32_t words[ENTRY / 4];
        flash_read(offset + at, words, ENTRY);
        for (int word = 0; word < ENTRY / 4; word++)
            if (words[word] != 0xffffffff)
                return 0;
    }
    return 1;
}

static void add_page(uint32_t offset, uint32_t sequence)
{
    unsigned at = nvs.pages++;
    for (; at && nvs.sequence[at - 1] > sequence; at--) {
        nvs.sequence[at] = nvs.sequence[at - 1];
        nvs.offset[at] = nvs.offset[at - 1];
    }
    nvs.sequence[at] = sequence;
    nvs.offset[at] = offset;
}

static void look_at_page(uint32_t offset, unsigned number)
{
    struct page_header header;
    flash_read(offset, &header, sizeof header);
    int is_used = header.state == PAGE_ACTIVE || header.state == PAGE_FULL || header.state == PAGE_FREEING;
    if (header.state == PAGE_EMPTY && is_blank(offset))
        return;
    if (!is_used || header.crc != crc32(ESP_IDF_CRC, &header.sequence, 24))
        PROBLEM("page %u is damaged", number);
    else if (header.version != OLDEST_VERSION && header.version != NEWEST_VERSION)
        PROBLEM("page %u is of the unknown version %u", number, 0x100u - header.version);
    else
        add_page(offset, header.sequence);
}

/* -- entries of a page */

static int is_number(uint8_t type)
{
    uint8_t size = type & 15;
    return !(type & 0xe0) && (size == 1 || size == 2 || size == 4 || size == 8);
}

static int has_data(uint8_t type)
{
    return type == STRING || type == OLD_BLOB || type == BLOB_DATA;
}

static int state_of(const uint8_t *states, unsigned index)
{
    return states[index / 4] >> index % 4 * 2 & 3;
}

static uint32_t crc_of_flash(uint32_t crc, uint32_t address, uint32_t size)
{
    while (size) {
        uint8_t bytes[ENTRY];
        uint32_t part = size < ENTRY ? size : ENTRY;
        flash_read(address, bytes, part);
        crc = crc32(crc, bytes, part);
        address += part;
        size -= part;
    }
    return crc;
}

static int is_sound(const struct entry *entry)
{
    if (entry->crc != crc32(crc32(ESP_IDF_CRC, entry, 4), entry->key, ENTRY - 8))
        return 0;
    return is_number(entry->type) || has_data(entry->type) || entry->type == BLOB_INDEX;
}

static int has_sound_data(const struct entry *entry, uint32_t address, const uint8_t *states, unsigned index)
{
    if (!entry->span || index + entry->span > ENTRIES || entry->data.size > (entry->span - 1) * ENTRY)
        return 0;
    for (unsigned at = index; at < index + entry->span; at++)
        if (state_of(states, at) != ENTRY_WRITTEN)
            return 0;
    return entry->data.crc == crc_of_flash(ESP_IDF_CRC, address + ENTRY, entry->data.size);
}

static int is_same_thing(const struct item *a, const struct item *b)
{
    if (a->name_space != b->name_space || (a->type == BLOB_DATA) != (b->type == BLOB_DATA))
        return 0;
    return (a->type != BLOB_DATA || a->chunk == b->chunk) && same(a->key, b->key);
}

static void add_item(const struct entry *entry, uint32_t address)
{
    if (nvs.size == MAX_ITEMS) {
        PROBLEM("there are more than %u entries: the rest was not looked at", MAX_ITEMS);
        nvs.size++;
    }
    if (nvs.size > MAX_ITEMS)
        return;
    struct item *item = &nvs.items[nvs.size];
    item->address = address;
    item->name_space = entry->name_space;
    item->type = entry->type;
    item->chunk = entry->chunk;
    item->is_old = 0;
    memcpy(item->key, entry->key, sizeof item->key);
    item->key[sizeof item->key - 1] = 0;
    for (unsigned at = 0; at < nvs.size; at++)
        if (is_same_thing(&nvs.items[at], item))
            nvs.items[at].is_old = 1;
    nvs.size++;
    if (!item->name_space)
        memcpy(nvs.names[entry->number[0]], item->key, sizeof item->key);
}

/* The library writes an active page from its first empty entry on, and keeps nothing that lies behind. */
static unsigned end_of(uint32_t offset, const uint8_t *states)
{
    uint32_t page_state;
    unsigned index = 0;
    flash_read(offset, &page_state, sizeof page_state);
    while (index < ENTRIES && (page_state != PAGE_ACTIVE || state_of(states, index) != ENTRY_EMPTY))
        index++;
    return index;
}

static void read_page(uint32_t offset, unsigned number)
{
    uint8_t states[ENTRY];
    uint8_t bad[ENTRIES];
    unsigned bad_count = 0, good_count = 0;
    flash_read(offset + ENTRY, states, sizeof states);
    unsigned end = end_of(offset, states);
    unsigned span;
    for (unsigned index = 0; index < ENTRIES; index += span) {
        struct entry entry;
        uint32_t address = offset + FIRST_ENTRY + index * ENTRY;
        span = 1;
        if (state_of(states, index) != ENTRY_WRITTEN)
            continue;
        if (index > end) {
            bad[bad_count++] = index;
            break;
        }
        flash_read(address, &entry, sizeof entry);
        int is_good = is_sound(&entry);
        if (is_good && has_data(entry.type)) {
            span = entry.span ? entry.span : 1;
            is_good = has_sound_data(&entry, address, states, index);
        }
        if (is_good) {
            add_item(&entry, address);
            good_count++;
        } else {
            bad[bad_count++] = index;
        }
    }
    if (bad_count && !good_count)
        PROBLEM("no entry of page %u can be read: is it encrypted?", number);
    for (unsigned at = 0; good_count && at < bad_count; at++)
        PROBLEM("entry %u of page %u is damaged", bad[at], number);
}

/* -- values */

static void print_decimal(uint32_t high, uint32_t low)
{
    char digits[21];
    char *text = &digits[sizeof digits - 1];
    *text = 0;
    do {
        uint32_t rest = 0;
        uint32_t halves[] = {high >> 16, high & 0xffff, low >> 16, low & 0xffff};
        for (int at = 0; at < 4; at++)
            halves[at] = divide(rest << 16 | halves[at], 10, &rest);
        *--text = '0' + rest;
        high = halves[0] << 16 | halves[1];
        low = halves[2] << 16 | halves[3];
    } while (high || low);
    print("%s", text);
}

static void print_number(const struct entry *entry)
{
    unsigned size = entry->type & 15;
    int is_signed = entry->type >> 4;
    int is_negative = is_signed && entry->number[size - 1] >> 7;
    uint8_t bytes[8];
    uint32_t low, high;
    memset(bytes, is_negative ? 0xff : 0, sizeof bytes);
    memcpy(bytes, entry->number, size);
    memcpy(&low, bytes, 4);
    memcpy(&high, bytes + 4, 4);
    if (is_negative) {
        low = -low;
        high = ~high + !low;
    }
    print("%c%u = %s", is_signed ? 'i' : 'u', size * 8, is_negative ? "-" : "");
    print_decimal(high, low);
}

/* Up to its zero; what would not stay in one line, and the backslash, as \xNN. */
static void print_string(uint32_t address, uint32_t size)
{
    print("string = ");
    for (; size; size--, address++) {
        uint8_t byte;
        flash_read(address, &byte, 1);
        if (!byte)
            return;
        if (byte < ' ' || byte == 0x7f || byte == '\\')
            print("\\x%02x", byte);
        else
            print("%c", byte);
    }
}

static void print_hex(uint32_t address, uint32_t size)
{
    for (; size; size--, address++) {
        uint8_t byte;
        flash_read(address, &byte, 1);
        print("%02x", byte);
    }
}

static const struct item *find_chunk(const struct item *blob, uint8_t chunk)
{
    for (unsigned at = 0; at < nvs.size && at < MAX_ITEMS; at++) {
        const struct item *item = &nvs.items[at];
        if (!item->is_old && item->type == BLOB_DATA && item->name_space == blob->name_space && item->chunk == chunk &&
            same(item->key, blob->key))
            return item;
    }
    return 0;
}

/* Prints the blob's data, or only sums them up; 0 if a chunk is missing. */
static int go_through_chunks(const struct item *item, const struct entry *index, int is_printed, uint32_t *size,
                             uint32_t *crc)
{
    *size = *crc = 0;
    for (unsigned number = 0; number < index->blob.chunks; number++) {
        const struct item *found = find_chunk(item, index->blob.first_chunk + number);
        struct entry chunk;
        if (!found)
            return 0;
        flash_read(found->address, &chunk, sizeof chunk);
        *size += chunk.data.size;
        *crc = crc_of_flash(*crc, found->address + ENTRY, chunk.data.size);
        if (is_printed)
            print_hex(found->address + ENTRY, chunk.data.size);
    }
    return *size == index->blob.size;
}

static void print_blob(const struct item *item, const struct entry *entry, int is_whole)
{
    uint32_t size = entry->data.size;
    uint32_t crc;
    if (entry->type == OLD_BLOB)
        crc = crc_of_flash(0, item->address + ENTRY, size);
    else
        go_through_chunks(item, entry, 0, &size, &crc);
    print("blob = ");
    if (!is_whole && size > SHORT_BLOB)
        print("%u bytes, crc32 %08x", (unsigned)size, (unsigned)crc);
    else if (entry->type == OLD_BLOB)
        print_hex(item->address + ENTRY, size);
    else
        go_through_chunks(item, entry, 1, &size, &crc);
}

static void print_item(const struct item *item, int is_whole)
{
    struct entry entry;
    const char *name = nvs.names[item->name_space];
    uint32_t size, crc;
    flash_read(item->address, &entry, sizeof entry);
    if (!*name) {
        PROBLEM("%s is in namespace %u, which has no name", item->key, item->name_space);
        return;
    }
    if (item->type == BLOB_INDEX && !go_through_chunks(item, &entry, 0, &size, &crc)) {
        PROBLEM("the blob %s.%s is not complete", name, item->key);
        return;
    }
    nvs.values++;
    print("nvs %s.%s ", name, item->key);
    if (item->type == STRING)
        print_string(item->address + ENTRY, entry.data.size);
    else if (is_number(item->type))
        print_number(&entry);
    else
        print_blob(item, &entry, is_whole);
    print("\n");
}

static void read_partition(void)
{
    struct partition part;
    if (!find_partition(&part)) {
        PROBLEM("there is no partition nvs");
        return;
    }
    unsigned pages = part.size / PAGE;
    if (pages > MAX_PAGES) {
        PROBLEM("there are more than %u pages: the rest was not looked at", MAX_PAGES);
        pages = MAX_PAGES;
    }
    for (unsigned number = 0; number < pages; number++)
        look_at_page(part.offset + number * PAGE, number);
    for (unsigned at = 0; at < nvs.pages; at++)
        read_page(nvs.offset[at], (nvs.offset[at] - part.offset) / PAGE);
}

void nvs_print(const char *name_space, const char *key)
{
    nvs.pages = nvs.size = nvs.values = nvs.problems = 0;
    memset(nvs.names, 0, sizeof nvs.names);
    read_partition();
    for (unsigned at = 0; at < nvs.size && at < MAX_ITEMS; at++) {
        const struct item *item = &nvs.items[at];
        if (item->is_old || !item->name_space || item->type == BLOB_DATA)
            continue;
        if (!key || (same(nvs.names[item->name_space], name_space) && same(item->key, key)))
            print_item(item, key != 0);
    }
    print("nvs: values %u, problems %u\n", nvs.values, nvs.problems);
}
