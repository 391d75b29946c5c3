"""Analyzes a flash: how full each partition is, and which images it contains."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_esp.formats.boot_image import ImageError, read_image
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of, chip_of, is_of_8266
from pytest_esp.formats.regions import SECTOR, is_blank, md5_of
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.flash.access import FlashAccess, Over, reach
from pytest_esp.operations.flash.flash_map import draw
from pytest_esp.operations.flash.layout import Kind, Span, chunks, layout_of, owner_of
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.units import format_size


@dataclass(frozen=True)
class RegionUse:
    """Usage of a region.

    Attributes:
        type, subtype: of a partition; None for other regions.
        used_sectors, erased_sectors: number of 4 KB sectors; an erased sector is all 0xFF.
        fill: used sectors divided by all sectors, 0 to 1.
        entropy: of the used sectors, bits per byte: about 8 for compressed or encrypted data; None if nothing is used.
    """

    name: str
    kind: Kind
    type: str | None
    subtype: str | None
    address: int
    size: int
    used_sectors: int
    erased_sectors: int
    fill: float
    entropy: float | None


@dataclass(frozen=True)
class FoundImage:
    """An image in flash.

    Attributes:
        region: the region that it begins in.
        chip: the chip named in its header; "esp8266" if its segments' addresses say so.
        size: in bytes; None if it is damaged.
        problem: why the bootloader would reject it; None if checksum and hash are right.
        app: its descriptor, if it is an app that has one.
    """

    address: int
    region: str
    chip: str
    size: int | None
    problem: str | None
    app: App | None


@dataclass(frozen=True)
class FlashAnalysis:
    """Contents of the flash. Sizes are in bytes.

    Attributes:
        flash_encryption: whether the chip encrypts its flash: the bytes read are then not what the chip sees.
        note: why the flash is not divided into partitions; None if it is.
        map: a picture of the flash, SVG.
    """

    flash_size: int
    flash_encryption: bool
    used_sectors: int
    erased_sectors: int
    entropy: float | None
    regions: tuple[RegionUse, ...]
    images: tuple[FoundImage, ...]
    note: str | None
    map: str


@operation(Effect.READ, group="flash")
def analyze(link: Link, *, over: Over = "auto", progress: Progress | None = None) -> FlashAnalysis:
    """Return the contents of the flash: used and erased sectors, entropy, images with descriptors, and a map.

    Areas of 64 KB that are blank according to the chip's MD5 are not read.

    Args:
        over: "wire" reads through the chip even if its flash file could be read (QEMU).
        progress: called with bytes done and total.

    Raises:
        OperationError: in secure download mode, or if the size of the flash is unknown.
    """
    board = owner_of(link, over)
    layout = layout_of(link, board.flash_size, board.chip)
    with reach(link, over, f"analyzing {format_size(board.flash_size)} of flash") as access:
        contents = _contents(access, board.flash_size, progress)
    used = [not is_blank(contents[place : place + SECTOR]) for place in range(0, len(contents), SECTOR)]
    return FlashAnalysis(
        flash_size=board.flash_size,
        flash_encryption=board.flash_encryption,
        used_sectors=sum(used),
        erased_sectors=len(used) - sum(used),
        entropy=_entropy(contents, 0, used),
        regions=tuple(_use(span, contents, used) for span in layout.spans),
        images=tuple(_images(contents, used, layout.spans, board.chip)),
        note=layout.note,
        map=draw(layout.spans, used),
    )


def _contents(access: FlashAccess, size: int, progress: Progress | None) -> bytes:
    blank = {length: md5_of(b"\xff" * length) for _, length in chunks(0, size)}
    parts: list[bytes] = []
    for address, length in chunks(0, size):
        is_erased = access.md5(address, length) == blank[length]
        parts.append(b"\xff" * length if is_erased else access.read(address, length))
        if progress is not None:
            progress(address + length, size)
    return b"".join(parts)


def _use(span: Span, contents: bytes, used: Sequence[bool]) -> RegionUse:
    sectors = used[span.address // SECTOR : span.end // SECTOR]
    return RegionUse(
        name=span.name,
        kind=span.kind,
        type=span.partition.type if span.partition else None,
        subtype=span.partition.subtype if span.partition else None,
        address=span.address,
        size=span.size,
        used_sectors=sum(sectors),
        erased_sectors=len(sectors) - sum(sectors),
        fill=sum(sectors) / max(len(sectors), 1),
        entropy=_entropy(contents, span.address, sectors),
    )


def _entropy(contents: bytes, start: int, used: Sequence[bool]) -> float | None:
    """Return Shannon's entropy of the bytes in used sectors, from *start*; None if there are none."""
    counts: Counter[int] = Counter()
    for number, is_used in enumerate(used):
        if is_used:
            place = start + number * SECTOR
            counts.update(contents[place : place + SECTOR])
    total = counts.total()
    if not total:
        return None
    return round(-sum(count / total * math.log2(count / total) for count in counts.values()), 3) + 0.0


def _images(contents: bytes, used: Sequence[bool], spans: Sequence[Span], chip: str) -> Iterator[FoundImage]:
    """Yield the images that begin at a sector boundary; valid images are not searched for further images."""
    position = 0
    for span in spans:
        for address in range(span.address, span.end, SECTOR):
            if address < position or not used[address // SECTOR]:
                continue
            image = _image(contents, address, span, chip)
            if image is not None:
                position = address + (image.size or 0)
                yield image


def _image(contents: bytes, address: int, span: Span, chip: str) -> FoundImage | None:
    head = contents[address : address + APP_HEAD_SIZE]
    made_for = "esp8266" if chip == "esp8266" and is_of_8266(head) else chip_of(head)
    if made_for is None:
        return None
    size = problem = None
    try:
        image = read_image(
            lambda place, length: contents[place : place + length],
            address,
            span.end - address,
            extended=made_for != "esp8266",
        )
        size = image.size
    except ImageError as error:
        problem = str(error)
    return FoundImage(address, span.name, made_for, size, problem, app_of(head))
