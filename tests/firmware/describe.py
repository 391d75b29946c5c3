"""Makes the files of a build folder that no compiler makes: the partition table, and the list of what goes where."""

import json
import sys
from pathlib import Path

from esp_idf_defs.partitions import PartitionTable


def table(source: str, target: str) -> None:
    """Make the binary partition table from its CSV file."""
    partitions = PartitionTable.from_csv(Path(source).read_text(encoding="utf-8"))
    partitions.verify()
    Path(target).write_bytes(partitions.to_binary())


def listing(chip: str, loader_offset: str, target: str) -> None:
    """Make flasher_args.json as ESP-IDF's build system writes it."""
    images = {
        "bootloader": (loader_offset, "bootloader/bootloader.bin"),
        "partition-table": ("0x8000", "partition_table/partition-table.bin"),
        "app": ("0x10000", "pytest_esp_test.bin"),
    }
    settings = {"flash_mode": "dio", "flash_size": "2MB", "flash_freq": "40m"}
    content = {
        "write_flash_args": [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", value)],
        "flash_settings": settings,
        "flash_files": dict(images.values()),
        **{name: {"offset": offset, "file": file, "encrypted": "false"} for name, (offset, file) in images.items()},
        "extra_esptool_args": {"after": "hard-reset", "before": "default-reset", "stub": True, "chip": chip},
    }
    Path(target).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"table": table, "listing": listing}[sys.argv[1]](*sys.argv[2:])
