"""A picture of the partitions, as SVG: one block each, from the first address down, showing how full it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from pytest_esp.units import format_size

_LEFT, _WIDTH, _RIGHT, _MARGIN = 84, 380, 170, 10
_LEAST, _MOST = 22, 130  # height of a block: minimum for a line of text, and addition for the whole flash


def draw(regions: Sequence[Mapping[str, Any]], starts: str | None) -> str:
    """Return a picture of *regions*.

    Args:
        regions: from `analysis.analyze`, by address: name, kind, type, subtype, address, size, fill.
        starts: name of the partition whose app the bootloader tries first; it is marked.
    """
    total = sum(one["size"] for one in regions) or 1
    heights = [_LEAST + round(_MOST * one["size"] / total) for one in regions]
    height, width = sum(heights) + 2 * _MARGIN, _LEFT + _WIDTH + _RIGHT
    body: list[str] = []
    top = _MARGIN
    for number, (region, tall) in enumerate(zip(regions, heights, strict=True)):
        body += _block(region, number, top, tall, starts)
        top += tall
    end = regions[-1]["address"] + regions[-1]["size"] if regions else 0
    body.append(_address(end, top))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + _MARGIN}" width="{width}" '
        f'height="{height + _MARGIN}" font-family="monospace" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _block(region: Mapping[str, Any], number: int, top: int, tall: int, starts: str | None) -> Iterator[str]:
    name, middle = _printable(str(region["name"])), top + tall // 2 + 4
    is_gap = region["kind"] == "gap"
    hue, saturation = number * 137 % 360, 0 if is_gap else 65  # as in the map of the sectors
    stroke = 'stroke="#59636e" stroke-dasharray="4 3"' if is_gap else 'stroke="#59636e"'
    yield _address(region["address"], top)
    yield (
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH}" height="{tall}" fill="hsl({hue},{saturation}%,92%)" {stroke}>'
        f"<title>{escape(name)}: {region['address']:#x}, {region['size']:#x} bytes</title></rect>"
    )
    used = round((_WIDTH - 2) * float(region["fill"] or 0.0))
    if used:
        yield (
            f'<rect x="{_LEFT + 1}" y="{top + 1}" width="{used}" height="{tall - 2}" '
            f'fill="hsl({hue},{saturation}%,75%)"/>'
        )
    kind = "/".join(str(one) for one in (region["type"], region["subtype"]) if one is not None)
    label = "free" if is_gap else f"{name}  {kind}" if kind else name
    yield f'<text x="{_LEFT + 8}" y="{middle}">{escape(label)}</text>'
    note = "" if is_gap else f", {100 * float(region['fill'] or 0.0):.0f} % used"
    yield f'<text x="{_LEFT + _WIDTH + 8}" y="{middle}">{format_size(region["size"])}{note}</text>'
    if starts is not None and region["name"] == starts:
        yield (
            f'<text x="{_LEFT + _WIDTH - 8}" y="{middle}" text-anchor="end" font-weight="bold">starts &#9654;</text>'
        )


def _address(address: int, top: int) -> str:
    return f'<text x="{_LEFT - 6}" y="{top + 4}" text-anchor="end" fill="#59636e">{address:#x}</text>'


def _printable(name: str) -> str:
    """Return a name without characters that XML does not allow: names come from flash and may contain anything."""
    return "".join(character if character.isprintable() else "?" for character in name)
