"""Draw docs/architecture.svg from the import contracts in pyproject.toml: ``python docs/architecture.py``."""

from __future__ import annotations

import ast
import textwrap
import tomllib
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).with_suffix(".svg")
PACKAGE = "pytest_esp."
OPERATIONS = "pytest_esp.operations"

_WIDTH, _EDGE, _ARROW = 760, 8, 28  # pixels, like all that follows
_LINE, _GAP, _WING = 15, 8, 26
_CHARACTERS_PER_PIXEL = 1 / 6.2  # of the small text

# Every text is in a filled box, so that the page behind the picture may be light or dark.
_STYLE = """
text { font: 11px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.name { font-weight: 600; font-size: 13px }
.room { fill: #dbe9fb; stroke: #7d8590 }
.wing { fill: #f6f8fa; stroke: #7d8590 }
.arrow { fill: none; stroke: #7d8590; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .room { fill: #1f3a5f }
  .wing { fill: #161b22 }
}"""


def layers(contract: str) -> list[list[str]]:
    """Return the layers of a contract (by the beginning of its name), from the top: the modules of each."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    found = next(one["layers"] for one in contracts if one["name"].startswith(contract))
    return [[module.strip() for module in layer.split("|")] for layer in found]


def picture() -> str:
    """Return the picture: a row for each line of the contracts, a box for each room."""
    body: list[str] = []
    y = _EDGE
    for rooms in layers("Rooms"):
        y = _row(body, rooms, y) + _GAP
    bottom = y - _GAP
    arrow = f'<path class="arrow" d="M{_WIDTH - _EDGE - 8} {_EDGE} V{bottom} m-5 -8 l5 8 l5 -8"/>'
    title = "<title>The rooms of pytest-esp: imports go downward only</title>"
    size = f'viewBox="0 0 {_WIDTH} {bottom + _EDGE}" width="{_WIDTH}" height="{bottom + _EDGE}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', title, f"<style>{_STYLE}\n</style>", arrow, *body]
    return "\n".join([*parts, "</svg>", ""])


def _row(body: list[str], rooms: list[str], y: int) -> int:
    """Draw one line of rooms and return where it ends."""
    places = _columns(_EDGE, _WIDTH - _EDGE - _ARROW, len(rooms))
    width = places[0][1]
    texts = [textwrap.wrap(_summary(room), int((width - 16) * _CHARACTERS_PER_PIXEL)) for room in rooms]
    wings = layers("Wings") if OPERATIONS in rooms else []
    text_height = 24 + _LINE * max(map(len, texts))
    height = text_height + 6 + len(wings) * (_WING + 4)
    for room, text, (x, width) in zip(rooms, texts, places, strict=True):
        body.append(_box("room", x, y, width, height))
        body.append(f'<text class="name" x="{x + 8}" y="{y + 19}">{room.removeprefix(PACKAGE)}</text>')
        body += [f'<text x="{x + 8}" y="{y + 36 + _LINE * i}">{escape(line)}</text>' for i, line in enumerate(text)]
    for row, names in enumerate(wings):
        top = y + text_height + 2 + row * (_WING + 4)
        for name, (x, width) in zip(names, _columns(_EDGE + 8, _WIDTH - _EDGE - _ARROW - 8, len(names)), strict=True):
            body.append(_box("wing", x, top, width, _WING))
            body.append(f'<text x="{x + width // 2}" y="{top + 17}" text-anchor="middle">{name}</text>')
    return y + height


def _columns(left: int, right: int, count: int) -> list[tuple[int, int]]:
    """Return where *count* boxes of one row begin, and how wide each is."""
    edges = [left + round(i * (right - left + _GAP) / count) for i in range(count + 1)]
    return [(begin, end - _GAP - begin) for begin, end in pairwise(edges)]


def _box(kind: str, x: int, y: int, width: int, height: int) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="4"/>'


def _summary(room: str) -> str:
    """Return the first line of a package's docstring; an empty string for a single module."""
    source = ROOT.joinpath(*room.split("."), "__init__.py")
    if not source.exists():
        return ""
    return (
        (ast.get_docstring(ast.parse(source.read_text("utf-8"))) or "").partition("\n")[0].rstrip(".").replace("`", "")
    )


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
