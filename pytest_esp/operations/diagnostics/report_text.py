"""Renders a diagnostic report: as Markdown, and as a page of HTML without scripts and other files."""

from __future__ import annotations

import html as escaping
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from pytest_esp.units import format_size

if TYPE_CHECKING:
    from pytest_esp.operations.diagnostics.report import DiagnosticReport, Section

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem 1.5rem; color: #1c2128; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid #d0d7de; }
h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .85rem; display: block; overflow-x: auto; }
th, td { border: 1px solid #d0d7de; padding: .2rem .6rem; text-align: left; vertical-align: top; }
th { background: #f6f8fa; } td { font-family: ui-monospace, monospace; }
td:first-child, th { white-space: nowrap; }
nav a { margin-right: .8rem; } .made { color: #59636e; margin-top: 0; } .problem { color: #59636e; font-style: italic; }
.high { background: #ffebe9; } .medium { background: #fff8c5; } svg { max-width: 100%; height: auto; }
pre { background: #f6f8fa; padding: .6rem; overflow-x: auto; font-size: .8rem; }
"""
_ADDRESSES = ("address", "offset", "begin", "flash_id")
_SIZES = ("size", "flash_size", "read_bytes")
_SHA_DIGITS = 9  # digits of an app's ELF SHA-256 printed by ESP-IDF
_MOST_BOOTS = 3  # similar boots to show in rows of their own


def markdown(report: DiagnosticReport) -> str:
    """Return a report as Markdown."""
    lines = [f"# Diagnostic report: {report.board}", "", f"{report.chip_type or 'no chip'}, {report.made}", ""]
    lines += ["## Notices", ""]
    lines += [
        f"- **{notice.severity}** ({notice.section}): {_inline(_counted(notice.what, notice.count))}"
        for notice in report.notices
    ]
    if not report.notices:
        lines.append("None.")
    for section in report.sections.values():
        lines += ["", f"## {section.title}", "", *_markdown_section(section)]
    return "\n".join(lines) + "\n"


def _markdown_section(section: Section) -> Iterator[str]:
    if section.data is None:
        yield f"*{_inline(section.problem or '')}*" + (f" ({_inline(section.hint)})" if section.hint else "")
        return
    simple, tables = _parts(section.data)
    if simple:
        yield from _markdown_table(["", ""], simple)
    for title, header, rows in tables:
        yield from ["", f"### {title}", ""]
        yield from _markdown_table(header, rows)
    if "hexdump" in section.data:
        yield from ["", "```", section.data["hexdump"], "```"]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(_inline(cell) for cell in row) + " |"


def _inline(text: str) -> str:
    """Return text as one line of Markdown, with markup escaped: it may come from a board."""
    plain = " ".join(text.split())
    return "".join(f"\\{character}" if character in "\\|*_`<>[]" else character for character in plain)


def html(report: DiagnosticReport) -> str:
    """Return a report as one page of HTML."""
    title = f"Diagnostic report: {report.board}"
    body = [
        f"<h1>{_safe(title)}</h1>",
        f'<p class="made">{_safe(report.chip_type or "no chip")}, {_safe(report.made)}</p>',
    ]
    links = "".join(f'<a href="#{name}">{_safe(section.title)}</a>' for name, section in report.sections.items())
    body += [f"<nav>{links}</nav>", '<h2 id="notices">Notices</h2>', *_html_notices(report)]
    for name, section in report.sections.items():
        body.append(f'<h2 id="{name}">{_safe(section.title)}</h2>')
        if name == "partitions" and report.partition_picture:
            body.append(report.partition_picture)
        if name == "flash" and report.flash_map:
            body.append(report.flash_map)
        body += _html_section(section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _html_notices(report: DiagnosticReport) -> Iterator[str]:
    if not report.notices:
        yield "<p>None.</p>"
        return
    rows = "".join(
        f'<tr class="{notice.severity}"><td>{notice.severity}</td><td><a href="#{notice.section}">{notice.section}</a>'
        f"</td><td>{_safe(_counted(notice.what, notice.count))}</td></tr>\n"
        for notice in report.notices
    )
    yield f"<table>\n{rows}</table>"


def _html_section(section: Section) -> Iterator[str]:
    if section.data is None:
        hint = f" ({_safe(section.hint)})" if section.hint else ""
        yield f'<p class="problem">{_safe(section.problem or "")}{hint}</p>'
        return
    simple, tables = _parts(section.data)
    if simple:
        yield _html_table((), simple)
    for title, header, rows in tables:
        yield f"<h3>{_safe(title)}</h3>"
        yield _html_table(header, rows)
    if "hexdump" in section.data:
        yield f"<pre>{_safe(section.data['hexdump'])}</pre>"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "<tr>" + "".join(f"<th>{_safe(cell)}</th>" for cell in header) + "</tr>\n" if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table>\n{head}{body}</table>"


def _safe(text: str) -> str:
    """Return text for HTML, without characters that documents may not contain: it may come from a board."""
    return escaping.escape(
        "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)
    )


# -- from data to tables

Rows = list[list[str]]


def _parts(data: Mapping[str, Any]) -> tuple[Rows, list[tuple[str, list[str], Rows]]]:
    """Return the values of a section as rows of name and value, and its lists of records as tables with titles."""
    data = _in_hexadecimal(data)
    simple: Rows = []
    tables: list[tuple[str, list[str], Rows]] = []
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            records = cast("list[dict[str, Any]]", value)
            header = [name for name in records[0] if name != "fields"] + (["fields"] if "fields" in records[0] else [])
            rows = [[_shown(one.get(name), name) for name in header] for one in records]
            tables.append((_words(key), header, _fewer_boots(records, rows) if key == "boots" else rows))
        elif isinstance(value, dict) and value:
            mapping = cast("dict[str, Any]", value)
            tables.append((_words(key), ["", ""], [[name, _shown(one, name)] for name, one in mapping.items()]))
        else:
            simple.append([_words(key), _shown(value, key)])
    return simple, tables


def _fewer_boots(boots: Sequence[Mapping[str, Any]], rows: Rows) -> Rows:
    """Return the rows of boots, with one row that counts those between the first and the last of equal ones."""
    shown: Rows = []
    for _, run in groupby(zip(boots, rows, strict=True), key=lambda pair: _kind_of_boot(pair[0])):
        equal = [row for _, row in run]
        if len(equal) > _MOST_BOOTS:
            more = [f"{len(equal) - 2} more of these", *[""] * (len(equal[0]) - 1)]
            equal = [equal[0], more, equal[-1]]
        shown += equal
    return shown


def _kind_of_boot(boot: Mapping[str, Any]) -> object:
    return boot["reason"], boot["after_crash"], boot["to_app"] is None, [phase["name"] for phase in boot["phases"]]


def _counted(text: str, count: int) -> str:
    return f"{text} ({count} times)" if count > 1 else text


def _in_hexadecimal(value: Any) -> Any:
    """Return plain data with each address replaced by its text."""
    if isinstance(value, list):
        return [_in_hexadecimal(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    record = cast("dict[str, Any]", value)
    return {
        key: record.get(f"{key}_hex") or _in_hexadecimal(one)
        for key, one in record.items()
        if key.removesuffix("_hex") not in record.keys() - {key}
    }


def _words(key: str) -> str:
    return key.replace("_", " ")


def _shown(value: Any, key: str) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(value, key)
    if isinstance(value, str):
        return _shortened(value, key)
    if isinstance(value, dict):
        return ", ".join(f"{name}={_shown(one, name)}" for name, one in cast("dict[str, Any]", value).items())
    return _listed(cast("list[Any]", value), key) if isinstance(value, list) else json.dumps(value)


def _number(value: float, key: str) -> str:
    if isinstance(value, float):
        return f"{100 * value:.0f} %" if key == "fill" else f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if key in _SIZES and value % 1024 == 0:
        return format_size(value)
    return f"{value:#x}" if key.isupper() or key in _ADDRESSES else str(value)  # names of registers are upper case


def _shortened(text: str, key: str) -> str:
    return text[:_SHA_DIGITS] if key == "elf_sha256" else text


def _listed(items: list[Any], key: str) -> str:
    if key == "phases":
        return "; ".join(f"{one['name']} {one['begin']:.3f} s" for one in items)
    if key == "crashes":
        return "; ".join(_counted(_shown(text, key), count) for text, count in Counter(items).items())
    return "; ".join(_frame(one) if _is_frame(one) else _shown(one, key) for one in items)


def _is_frame(value: Any) -> bool:
    return isinstance(value, dict) and "pc" in value and "function" in value


def _frame(frame: Mapping[str, Any]) -> str:
    where = f" ({frame['file']}:{frame['line']})" if frame["file"] else ""
    return f"{frame['pc']} {frame['function'] or '?'}{where}"
