"""Operations on NVS partitions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from pytest_esp.errors import OperationError
from pytest_esp.formats import files
from pytest_esp.formats.files import ReadPath, WritePath, new_file, resolve
from pytest_esp.formats.nvs_pages import KEY_SIZE, NvsContents, NvsData, make_pages, read_pages
from pytest_esp.formats.regions import size_argument
from pytest_esp.link.link import Link
from pytest_esp.operations.flash import reading, tables
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security.secret_names import remember_in, remember_key


@dataclass(frozen=True)
class NvsImage:
    """An NVS partition to be flashed: its bytes, and where they were saved, if they were."""

    size: int
    encrypted: bool
    data: bytes = field(repr=False)
    output_file: Path | None = None


@operation(Effect.READ, group="nvs")
def create(
    link: Link,
    values: NvsData | ReadPath,
    output_file: WritePath | None = None,
    *,
    size: int | str | None = None,
    partition: str = "nvs",
    key_file: ReadPath | None = None,
    overwrite: bool = False,
) -> NvsImage:
    """Make an NVS partition from values, and flash nothing (`writing.write` does, at the partition's offset).

    Args:
        values: by namespace and key: text, numbers, bytes, or type and value; or a CSV file as Espressif's generator
            takes it.
        output_file: saves it, too.
        size: in bytes; by default that of the board's *partition*.
        partition: its name.
        key_file: of NVS encryption; its first 64 bytes are the key.
        overwrite: whether *output_file* may exist already.

    Raises:
        OperationError: if a value does not fit, there is no room, or the file exists or cannot be written.
    """
    length = tables.find(link, partition).size if size is None else size_argument(size, "size")
    return make(values, length, output_file, key_file=key_file, overwrite=overwrite)


def make(
    values: NvsData | str | os.PathLike[str],
    size: int,
    output_file: str | os.PathLike[str] | None = None,
    *,
    key_file: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> NvsImage:
    """Make an NVS partition of *size* bytes without a board; see `create`."""
    path = new_file(output_file, overwrite) if output_file is not None else None
    source = Path(values) if isinstance(values, (str, os.PathLike)) else values
    remember_in(source)
    data = make_pages(source, size, _key(key_file))
    if path is not None:
        files.save(path, data)
    return NvsImage(size, key_file is not None, data, path)


def contents(image: NvsImage, *, key_file: str | os.PathLike[str] | None = None) -> NvsContents:
    """Return what an NVS partition holds that was made, read back from its bytes."""
    return read_pages(image.data, _key(key_file))


@operation(Effect.READ, group="nvs")
def read(link: Link, partition: str = "nvs", *, key_file: ReadPath | None = None) -> NvsContents:
    """Return what an NVS partition in flash holds: namespaces, types and values; pages that are encrypted are named.

    Args:
        partition: its name.
        key_file: of NVS encryption; its first 64 bytes are the key.

    Raises:
        OperationError: if there is no such partition, or it is not for NVS.
    """
    place = tables.find(link, partition)
    if (place.type, place.subtype) != ("data", "nvs"):
        raise OperationError(
            f"the partition {partition!r} is {place.type}/{place.subtype}, not data/nvs",
            hint="the table says which are: see partitions read",
        )
    key = _key(key_file)
    return read_pages(reading.read(link, place.offset, place.size).data, key)


def _key(key_file: str | os.PathLike[str] | None) -> bytes | None:
    if key_file is None:
        return None
    try:
        return remember_key(resolve(key_file).read_bytes()[:KEY_SIZE])
    except OSError as error:
        raise OperationError(f"{key_file} cannot be read: {error.strerror}") from error
