"""Operations on NVS partitions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pytest_esp.errors import OperationError
from pytest_esp.formats.files import FileName, ReadPath, WritePath, new_file, resolve, save
from pytest_esp.formats.nvs_pages import KEY_SIZE, NvsContents, make_pages, read_pages
from pytest_esp.formats.nvs_values import NvsData
from pytest_esp.formats.regions import size_argument
from pytest_esp.link.link import Link
from pytest_esp.operations.flash import reading, tables
from pytest_esp.operations.registry import Effect, file_operation, operation
from pytest_esp.operations.security.secret_names import remember_in, remember_key
from pytest_esp.units import Contents


@dataclass(frozen=True)
class NvsImage:
    """An NVS partition that was created.

    Attributes:
        size: in bytes.
        encrypted: whether it is encrypted.
        namespaces: the number of values in each.
        output_file: the file it was saved to.
    """

    size: int
    encrypted: bool
    namespaces: Mapping[str, int]
    data: Contents = field(repr=False)
    output_file: Path | None = None


@file_operation(group="nvs")
def create(
    data: NvsData | ReadPath,
    output_file: WritePath,
    *,
    size: int | str = "24KB",
    key_file: ReadPath | None = None,
    overwrite: bool = False,
) -> NvsImage:
    """Create an NVS partition image from values; nothing is flashed.

    Args:
        data: values by namespace and key, {"wifi": {"ssid": "home", "channel": 6}}, or a CSV file in the format of
            Espressif's generator. A value is text, a number (u32, or i32 if negative), or {"type": "u8", "value": 1};
            types are u8 to i64, string, blob (hex digits) and base64.
        output_file: save the partition image to this file.
        size: in bytes, or e.g. 24KB: a multiple of the 4 KB page size.
        key_file: encrypt the partition with this NVS key; the first 64 bytes are used.
        overwrite: replace *output_file* if it exists.

    Raises:
        OperationError: if a value is invalid, there is not enough space, or the file exists or cannot be written.
    """
    path = new_file(output_file, overwrite)
    image = make(data, size_argument(size, "size"), key_file=key_file)
    save(path, image.data)
    return replace(image, output_file=path)


def make(values: NvsData | FileName, size: int, *, key_file: FileName | None = None) -> NvsImage:
    """Create an NVS partition of *size* bytes without saving it; see `create`."""
    source = Path(values) if isinstance(values, (str, os.PathLike)) else values
    remember_in(source)
    key = _key(key_file)
    data = make_pages(source, size, key)
    namespaces = Counter(entry.namespace for entry in read_pages(data, key).entries)
    return NvsImage(size, key is not None, namespaces, data)


def contents(image: NvsImage, *, key_file: FileName | None = None) -> NvsContents:
    """Return the values of an NVS partition that was created, read back from its bytes."""
    return read_pages(image.data, _key(key_file))


@operation(Effect.READ, group="nvs")
def read(link: Link, partition: str = "nvs", *, key_file: ReadPath | None = None) -> NvsContents:
    """Read an NVS partition in flash: namespaces, keys, types and values; encrypted pages are marked as such.

    Args:
        partition: name of the partition.
        key_file: decrypt encrypted pages with this NVS key; the first 64 bytes are used.

    Raises:
        OperationError: if there is no such partition, or it is not an NVS partition.
    """
    place = tables.find(link, partition)
    if (place.type, place.subtype) != ("data", "nvs"):
        raise OperationError(
            f"the partition {partition!r} is {place.type}/{place.subtype}, not data/nvs",
            hint="look up the NVS partitions in the partition table",
        )
    key = _key(key_file)
    return read_pages(reading.read(link, place.offset, place.size).data, key)


def _key(key_file: FileName | None) -> bytes | None:
    if key_file is None:
        return None
    try:
        return remember_key(resolve(key_file).read_bytes()[:KEY_SIZE])
    except OSError as error:
        raise OperationError(f"{key_file} cannot be read: {error.strerror}") from error
