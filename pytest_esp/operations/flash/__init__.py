"""Flash: reading, writing, the partition table, flash usage, the flash chip."""
