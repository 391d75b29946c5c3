"""Size analysis of an app: sections, memories, symbols and, if the linker map is available, archives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError
from pytest_esp.formats.elf import Elf, Section, Symbol, memories_at, read_elf
from pytest_esp.formats.files import ReadPath, known_chip, read_file, resolve
from pytest_esp.formats.images import chip_of
from pytest_esp.formats.listings import read_json
from pytest_esp.link.logs import Transcript, capture
from pytest_esp.names import ChipName
from pytest_esp.operations.registry import file_operation

_PLACEHOLDER = "dummy"  # in names of sections that reserve addresses used through another bus
_OVERLAPPING = ("BYTE_ACCESSIBLE", "MEM_INTERNAL2")  # in memory maps: second names of the same memory
# Chips with a memory for the instruction bus alone; elsewhere both buses reach one SRAM (their technical reference
# manuals, "System and Memory").
_APART = ("esp8266", "esp32", None)
_SHARED = "DRAM and IRAM are the same memory on this chip, at two addresses: using one reduces the other"
_CODE, _DATA = ("IRAM", "IROM"), ("DRAM", "DROM")


@dataclass(frozen=True)
class MemoryUse:
    """Usage of a memory, in bytes.

    Attributes:
        size: available to the linker, according to its map; otherwise the address range known to esptool.
    """

    name: str
    used: int
    size: int
    percent: float


@dataclass(frozen=True)
class ArchiveSize:
    """The size of an archive (a component of the project) in bytes: in total, and by memory."""

    name: str
    size: int
    memories: dict[str, int]


@dataclass(frozen=True)
class SizeAnalysis:
    """Sizes, in bytes.

    Attributes:
        chip_type: None if it is unknown; there are no `memories` then.
        image_size: contents of the image, without headers.
        ram_only_size: RAM without contents in the image (``.bss``).
        symbols: the largest symbols.
        archives: largest first; empty without a map.
        map_file: source of archives and memories.
        notes: what is missing, and why.
    """

    elf_file: Path
    chip_type: str | None
    image_size: int
    ram_only_size: int
    sections: tuple[Section, ...]
    memories: tuple[MemoryUse, ...]
    symbols: tuple[Symbol, ...]
    archives: tuple[ArchiveSize, ...]
    map_file: Path | None
    notes: tuple[str, ...]


@file_operation(group="firmware")
def size(
    elf_file: ReadPath, chip_type: ChipName | None = None, *, map_file: ReadPath | None = None, top: int = 20
) -> SizeAnalysis:
    """Analyze the size of an app: sections, memories, largest symbols, and archives by the linker map.

    Args:
        elf_file: ELF file as written by the linker.
        chip_type: chip name as in esptool, e.g. esp32c3; by default that of the build folder, else the only one that
            the ELF file fits.
        map_file: linker map; by default NAME.map beside the ELF file.
        top: number of largest symbols and archives to list.

    Raises:
        FirmwareError: if the ELF file or the map is damaged, or the ELF file is not for this chip.
        OperationError: if the chip is unknown.
    """
    if top < 0:
        raise OperationError(f"top must be at least 0, not {top}", hint="use a number from 0")
    elf = read_elf(elf_file)
    made_for = _chip_of(elf, Path(elf_file), chip_type)
    notes: list[str] = []
    if made_for is None:
        fitting = ", ".join(elf.fitting_chips()) or "none"
        notes.append(f"no memories: the chip is unknown; the ELF file fits {fitting}")
    path = resolve(map_file if map_file is not None else Path(elf_file).with_suffix(".map"))
    by_map = _by_map(path, elf, made_for) if map_file is not None or path.is_file() else None
    if by_map is None:
        notes.append(f"no archives: linker map {path.name} not found")
    sections = tuple(section for section in elf.sections if _counts(section))
    if not elf.symbols:
        notes.append("no symbols: the ELF file is stripped")
    memories = by_map.memories if by_map else tuple(_memories(sections, made_for))
    if made_for not in _APART and {"DRAM", "IRAM"} <= {one.name for one in memories}:
        notes.append(_SHARED)
    return SizeAnalysis(
        elf_file=Path(elf_file),
        chip_type=made_for,
        image_size=sum(one.size for one in sections if one.in_image),
        ram_only_size=sum(one.size for one in sections if not one.in_image),
        sections=sections,
        memories=memories,
        symbols=elf.symbols[:top],
        archives=by_map.archives[:top] if by_map else (),
        map_file=path if by_map else None,
        notes=(*notes, *(by_map.notes if by_map else ())),
    )


def _counts(section: Section) -> bool:
    return section.in_image or _PLACEHOLDER not in section.name


def _chip_of(elf: Elf, path: Path, chip: str | None) -> str | None:
    """Return the given chip, else that of the build folder, else the only one with matching memory."""
    if chip is not None:
        chip = known_chip(chip)
        reason = elf.why_not_for(chip)
        if reason is not None:
            raise FirmwareError(
                f"{elf.source} is not for the {chip}: {reason}", hint="omit the chip, or give another one"
            )
        return chip
    fitting = elf.fitting_chips()
    for found in (_listed_chip(path.parent), _chip_of_image(path.with_suffix(".bin"))):
        if found is not None and elf.why_not_for(found) is None:
            return found
    return fitting[0] if len(fitting) == 1 else None


def _listed_chip(folder: Path) -> str | None:
    try:
        found = read_json(folder / "flasher_args.json")["extra_esptool_args"]["chip"]
    except (FirmwareError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found in CHIP_DEFS else None


def _chip_of_image(path: Path) -> str | None:
    return chip_of(read_file(path, "image")[:24]) if path.is_file() and path.stat().st_size else None


def _memories(sections: Sequence[Section], chip: str | None) -> Iterator[MemoryUse]:
    if chip is None:
        return
    used: Counter[str] = Counter()
    for section in sections:
        used[_memory(chip, section)] += section.size
    for name, total in sorted(used.items()):
        yield _use(name, total, _window(chip, name))


def _memory(chip: str, section: Section) -> str:
    names = memories_at(chip, section.address)
    plain = [name for name in names if name not in _OVERLAPPING] or list(names)
    # On chips with one address space for code and data the same memory has two names.
    preferred = [name for name in plain if name in (_CODE if section.executable else _DATA)]
    return next(iter((*preferred, *plain)), "unknown")


def _window(chip: str, name: str) -> int:
    spans = cast("list[tuple[int, int, str]]", CHIP_DEFS[chip].MEMORY_MAP)
    return sum(end - start for start, end, one in spans if one == name)


def _use(name: str, used: int, size: int) -> MemoryUse:
    return MemoryUse(name, used, size, round(100 * used / size, 1) if size else 0.0)


# -- by the linker's map


@dataclass(frozen=True)
class _ByMap:
    memories: tuple[MemoryUse, ...]
    archives: tuple[ArchiveSize, ...]
    notes: tuple[str, ...]


def _by_map(path: Path, elf: Elf, chip: str | None) -> _ByMap:
    """Return the data that esp-idf-size extracts from a map."""
    from esp_idf_size import mapfile, memorymap

    read_file(path, "linker map")
    try:
        with capture(Transcript()):
            parsed: Any = mapfile.MapFile(str(path))
            parsed.target = parsed.target or chip
            found = memorymap.get(str(path), load_symbols=False, map_file=parsed)
    except Exception as error:  # its own errors, and any other for truncated maps
        words = str(error) or type(error).__name__
        raise FirmwareError(f"the linker map {path} cannot be read: {words}", hint="build the project again") from error
    types: Mapping[str, Any] = found["memory_types"]
    return _ByMap(
        memories=tuple(_use(name, int(one["used"]), int(one["size"])) for name, one in types.items() if one["used"]),
        archives=tuple(_archives(types)),
        notes=tuple(_mismatches(parsed.sections, elf, path)),
    )


def _archives(types: Mapping[str, Any]) -> list[ArchiveSize]:
    sizes: dict[str, Counter[str]] = {}
    for memory, one in types.items():
        for section in one["sections"].values():
            for name, archive in section["archives"].items():
                sizes.setdefault(str(name), Counter())[memory] += int(archive["size"])
    found = [ArchiveSize(name, by.total(), {k: v for k, v in by.items() if v}) for name, by in sizes.items()]
    return sorted((one for one in found if one.size), key=lambda one: (-one.size, one.name))


def _mismatches(sections: Sequence[Mapping[str, Any]], elf: Elf, path: Path) -> Iterator[str]:
    mapped = {str(one["name"]): (int(one["address"]), int(one["size"])) for one in sections}
    others = [one.name for one in elf.sections if mapped.get(one.name) != (one.address, one.size)]
    if others:
        yield f"{path.name} is the map of another build: sections {', '.join(others[:5])} differ"
