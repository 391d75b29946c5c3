/* What the partition "nvs" holds, read from flash without ESP-IDF's library and without anything of the host's. */
#pragma once

/* Prints the values of the partition, damage, and how much there was of both. A name_space and a key (or null) select
 * one value, whose blob is then printed whole. */
void nvs_print(const char *name_space, const char *key);
