"""Flash: reading, writing, the partition table in it, what is in it, the flash chip."""
