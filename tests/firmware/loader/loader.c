/* The second-stage bootloader: reads the partition table and otadata, picks a slot, copies the app into RAM, starts it.
 *
 * It decides and reports as ESP-IDF's does with app rollback enabled. */
#include "chip.h"
#include "crc32.h"
#include "digest.h"
#include "partition.h"
#include "retained.h"
#include "spi_flash.h"
#include "text.h"

enum { OTA_NEW, OTA_PENDING_VERIFY, OTA_VALID, OTA_INVALID, OTA_ABORTED };

struct ota_select {
    uint32_t sequence;
    uint8_t label[20];
    uint32_t state;
    uint32_t crc;
};

struct image_header {
    uint8_t magic;
    uint8_t segments;
    uint8_t flash_mode;
    uint8_t flash_size;
    uint32_t entry;
    uint8_t write_protect;
    uint8_t drive[3];
    uint16_t chip_id;
    uint8_t min_revision_major;
    uint16_t min_revision;
    uint16_t max_revision;
    uint8_t reserved[4];
    uint8_t has_hash;
} __attribute__((packed));

struct segment {
    uint32_t address;
    uint32_t size;
};

/* The RAM that apps are linked to, from the linker script. */
extern char app_iram_start[], app_iram_end[], app_dram_start[], app_dram_end[];

static struct partition table[TABLE_ENTRIES];
static unsigned table_size;

static const char *usage(const struct partition *part)
{
    static const char *const data_usage[] = {"OTA data", "RF data", "WiFi data", "Core dump", "NVS keys"};
    if (part->type == TYPE_DATA)
        return part->subtype < 5 ? data_usage[part->subtype] : "Unknown data";
    if (part->type != TYPE_APP)
        return "unknown";
    if (part->subtype == SUBTYPE_FACTORY)
        return "factory app";
    if (part->subtype == SUBTYPE_TEST)
        return "test app";
    return part->subtype >> 4 == 1 ? "OTA app" : "Unknown app";
}

static int equal(const uint8_t *a, const uint8_t *b, unsigned size)
{
    while (size && *a++ == *b++)
        size--;
    return !size;
}

static int check_table(void)
{
    while (table_size < TABLE_ENTRIES - 1 && table[table_size].magic == ENTRY_MAGIC)
        table_size++;
    uint16_t magic = table[table_size].magic;
    if (table_size == 0 || (magic != MD5_MAGIC && magic != 0xffff)) {
        LOGE("flash_parts", "partition %u invalid magic number 0x%x", table_size, magic);
        return 0;
    }
    if (magic == MD5_MAGIC) {
        struct digest digest;
        uint8_t md5[16];
        md5_begin(&digest);
        md5_add(&digest, table, table_size * sizeof *table);
        md5_end(&digest, md5);
        if (!equal(md5, (const uint8_t *)&table[table_size] + 16, sizeof md5)) {
            LOGE("flash_parts", "Incorrect MD5 checksum");
            return 0;
        }
    }
    return 1;
}

static int read_table(void)
{
    flash_read(TABLE_OFFSET, table, sizeof table);
    if (!check_table()) {
        LOGE("boot", "Failed to verify partition table");
        LOGE("boot", "load partition table error!");
        return 0;
    }
    LOGI("boot", "Partition Table:");
    LOGI("boot", "## Label            Usage          Type ST Offset   Length");
    for (unsigned number = 0; number < table_size; number++) {
        struct partition *part = &table[number];
        part->flags = 0; /* so that a label of 16 characters ends */
        LOGI("boot", "%2d %-16s %-16s %02x %02x %08x %08x", number, part->label, usage(part), part->type, part->subtype,
             (unsigned)part->offset, (unsigned)part->size);
    }
    LOGI("boot", "End of partition table");
    return 1;
}

static const struct partition *find(uint8_t type, uint8_t subtype)
{
    for (unsigned number = 0; number < table_size; number++)
        if (table[number].type == type && table[number].subtype == subtype)
            return &table[number];
    return 0;
}

static void rewrite(uint32_t address, const struct ota_select *entry)
{
    flash_erase_sector(address);
    flash_program(address, entry, sizeof *entry);
}

/* The number of the slot that otadata names, -1 for none; keeps the book of images that are on trial. */
static int chosen_slot(const struct partition *otadata, unsigned slots, int *is_blank)
{
    struct ota_select entries[2];
    int best = -1;
    *is_blank = 1;
    for (int sector = 0; sector < 2; sector++) {
        struct ota_select *entry = &entries[sector];
        uint32_t address = otadata->offset + sector * FLASH_SECTOR;
        flash_read(address, entry, sizeof *entry);
        if (entry->sequence != 0xffffffff || entry->crc != 0xffffffff)
            *is_blank = 0;
        if (entry->sequence == 0xffffffff || entry->crc != crc32(ESP_IDF_CRC, &entry->sequence, 4))
            continue;
        if (entry->state == OTA_PENDING_VERIFY) {
            /* It was started once and did not confirm itself. */
            entry->state = OTA_ABORTED;
            rewrite(address, entry);
        }
        if (entry->state == OTA_INVALID || entry->state == OTA_ABORTED)
            continue;
        if (best < 0 || entry->sequence > entries[best].sequence)
            best = sector;
    }
    if (best < 0)
        return -1;
    if (entries[best].state == OTA_NEW) {
        entries[best].state = OTA_PENDING_VERIFY;
        rewrite(otadata->offset + best * FLASH_SECTOR, &entries[best]);
    }
    uint32_t slot;
    divide(entries[best].sequence - 1, slots, &slot);
    return slot;
}

static int lies_in(const struct segment *segment, const char *start, const char *end)
{
    return segment->address >= (uint32_t)start && segment->address < (uint32_t)end &&
           segment->size <= (uint32_t)end - segment->address;
}

static int check_chip(const struct image_header *header)
{
    if (header->chip_id != CHIP_ID) {
        LOGE("boot_comm", "mismatch chip ID, expected %u, found %u", CHIP_ID, header->chip_id);
        return 0;
    }
    uint32_t required_minor, found_minor;
    unsigned required = divide(header->min_revision, 100, &required_minor);
    unsigned found = divide(chip_revision(), 100, &found_minor);
    if (header->min_revision > chip_revision()) {
        LOGE("boot_comm", "chip revision check failed. Required >= v%u.%u, found v%u.%u.", required,
             (unsigned)required_minor, found, (unsigned)found_minor);
        return 0;
    }
    return 1;
}

static int check_hash(uint32_t begin, uint32_t end)
{
    struct digest digest;
    uint8_t line[16], calculated[32], stored[32];
    sha256_begin(&digest);
    for (uint32_t at = begin; at < end; at += sizeof line) { /* images end at a multiple of 16 */
        flash_read(at, line, sizeof line);
        sha256_add(&digest, line, sizeof line);
    }
    sha256_end(&digest, calculated);
    flash_read(end, stored, sizeof stored);
    if (!equal(calculated, stored, sizeof stored)) {
        LOGE("esp_image", "Image hash failed - image is corrupt");
        return 0;
    }
    return 1;
}

/* Copies a segment from flash into RAM; its bytes, XORed. */
static uint8_t copy(uint32_t offset, const struct segment *segment)
{
    uint8_t checksum = 0;
    for (uint32_t at = 0; at < segment->size; at += 64) {
        uint32_t chunk[16];
        uint32_t size = segment->size - at < 64 ? segment->size - at : 64;
        flash_read(offset + at, chunk, size);
        for (uint32_t byte = 0; byte < size; byte++)
            checksum ^= ((uint8_t *)chunk)[byte];
        for (uint32_t word = 0; word < size / 4; word++) /* code RAM takes words only */
            ((volatile uint32_t *)(segment->address + at))[word] = chunk[word];
    }
    return checksum;
}

/* Copies the image into RAM; its entry point, or 0 if it cannot be started. */
static uint32_t load(const struct partition *slot)
{
    struct image_header header;
    uint32_t offset = slot->offset;
    flash_read(offset, &header, sizeof header);
    if (header.magic != 0xe9) {
        LOGE("esp_image", "image at 0x%x has invalid magic byte (nothing flashed here?)", (unsigned)offset);
        return 0;
    }
    offset += sizeof header;
    uint8_t checksum = 0xef;
    for (int number = 0; number < header.segments; number++) {
        struct segment segment;
        flash_read(offset, &segment, sizeof segment);
        offset += sizeof segment;
        LOGI("esp_image", "segment %d: paddr=%08x vaddr=%08x size=%05xh (%6d) load", number, (unsigned)offset,
             (unsigned)segment.address, (unsigned)segment.size, (int)segment.size);
        if (!lies_in(&segment, app_iram_start, app_iram_end) && !lies_in(&segment, app_dram_start, app_dram_end)) {
            LOGE("esp_image", "Segment %d 0x%08x-0x%08x invalid: not in the app's RAM", number,
                 (unsigned)segment.address, (unsigned)(segment.address + segment.size));
            return 0;
        }
        checksum ^= copy(offset, &segment);
        offset += segment.size;
    }
    offset |= 15; /* where the last line of 16 bytes ends */
    uint8_t stored;
    flash_read(offset, &stored, 1);
    if (stored != checksum) {
        LOGE("esp_image", "Checksum failed. Calculated 0x%x read 0x%x", checksum, stored);
        return 0;
    }
    if (header.has_hash && !check_hash(slot->offset, offset + 1))
        return 0;
    return check_chip(&header) ? header.entry : 0;
}

static void start(const struct partition *slot)
{
    uint32_t entry = load(slot);
    if (!entry) {
        if (slot->subtype == SUBTYPE_FACTORY)
            LOGE("boot", "Factory app partition is not bootable");
        else if (slot->subtype == SUBTYPE_TEST)
            LOGE("boot", "Factory test app partition is not bootable");
        else
            LOGE("boot", "OTA app partition slot %d is not bootable", slot->subtype - SUBTYPE_OTA_0);
        return;
    }
    LOGI("boot", "Loaded app from partition at offset 0x%x", (unsigned)slot->offset);
    for (unsigned at = 0; at < sizeof slot->label; at++)
        RETAINED->slot[at] = slot->label[at];
    RETAINED->slot[sizeof slot->label] = 0;
    uart_flush();
    ((void (*)(void))entry)();
}

static void start_any(void)
{
    const struct partition *otadata = find(TYPE_DATA, SUBTYPE_OTADATA);
    const struct partition *factory = find(TYPE_APP, SUBTYPE_FACTORY);
    const struct partition *test = find(TYPE_APP, SUBTYPE_TEST);
    int slots = 0;
    while (slots < 16 && find(TYPE_APP, SUBTYPE_OTA_0 + slots))
        slots++;
    int chosen = -1;
    if (otadata && slots) {
        int is_blank;
        chosen = chosen_slot(otadata, slots, &is_blank);
        if (chosen < 0 && !is_blank && factory)
            LOGE("boot", "ota data partition invalid, falling back to factory");
        else if (chosen < 0 && !is_blank)
            LOGE("boot", "ota data partition invalid and no factory, will try all partitions");
        else if (chosen < 0 && factory)
            LOGI("boot", "Defaulting to factory image");
        else if (chosen < 0)
            LOGI("boot", "No factory image, trying OTA 0");
    }
    /* From the chosen slot downwards, then the factory app, then the other slots from the top. */
    for (int slot = chosen; slot >= 0; slot--)
        start(find(TYPE_APP, SUBTYPE_OTA_0 + slot));
    if (factory)
        start(factory);
    if (chosen < 0)
        for (int slot = 0; slot < slots; slot++)
            start(find(TYPE_APP, SUBTYPE_OTA_0 + slot));
    else
        for (int slot = slots - 1; slot > chosen; slot--)
            start(find(TYPE_APP, SUBTYPE_OTA_0 + slot));
    if (test)
        start(test);
    LOGE("boot", "No bootable app partitions in the partition table");
}

void main(void)
{
    chip_stop_watchdogs();
    if (!chip_was_restarted())
        RETAINED->magic = 0;
    uint32_t minor;
    uint32_t major = divide(chip_revision(), 100, &minor);
    LOGI("boot", "pytest-esp test firmware " VERSION " 2nd stage bootloader");
    LOGI("boot", "chip revision: v%u.%u", (unsigned)major, (unsigned)minor);
    if (read_table())
        start_any();
    for (uint32_t begin = chip_ms(); chip_ms() - begin < 1000;)
        ;
    chip_restart();
}
