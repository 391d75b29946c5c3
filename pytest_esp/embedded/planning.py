"""Says of each test that uses pytest-embedded's fixtures which boards it needs."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from pytest_esp.embedded.parameters import count_of, item_value, parse_multi_dut_args
from pytest_esp.embedded.targets import why_filtered
from pytest_esp.rack.chips import CHIPS

_USES_BOARD = frozenset({"dut", "serial", "pexpect_proc", "unity_tester"})


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests with what they need, before this plugin plans them."""
    if config.getoption("check_duplicates", None):
        _refuse_duplicates(items)
    is_marking = parse_multi_dut_args(1, config.getoption("add_target_as_marker_with_amount", None))
    for item in items:
        targets = _targets(item)
        if is_marking and any(targets):
            item.add_marker("+".join(f"{chip}_{n}" if n > 1 else str(chip) for chip, n in Counter(targets).items()))
        marker = item.get_closest_marker("skip_if_soc")
        if marker and len(targets) == 1 and targets[0] and (reason := why_filtered(marker, targets[0])):
            item.add_marker(pytest.mark.skip(reason=reason))
        if _USES_BOARD.intersection(getattr(item, "fixturenames", ())):
            _require(item, targets)


def _refuse_duplicates(items: list[pytest.Item]) -> None:
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise pytest.UsageError(f"several tests have the same name: {', '.join(twice)}")


def _targets(item: pytest.Item) -> list[str | None]:
    """Return the chip of each board; None for any."""
    count = count_of(item_value(item, "count", 1))
    return [None if one == "auto" else one for one in _each(item, "target", count)]


def _each(item: pytest.Item, name: str, count: int) -> list[Any]:
    try:
        values = parse_multi_dut_args(count, item_value(item, name))
    except ValueError:  # the fixture reports it
        values = parse_multi_dut_args(count, None)
    return [*values] if count > 1 else [values]


def _require(item: pytest.Item, targets: list[str | None]) -> None:
    """Add a marker that names the chips, the number of boards and the backend that a test needs."""
    unknown = [chip for chip in targets if chip is not None and chip not in CHIPS]
    if unknown:
        item.add_marker(pytest.mark.skip(reason=f"no board can be: {', '.join(unknown)}"))
        return
    chips = {chip for chip in targets if chip} or _built_for(item)
    if len(chips) > 1 and len(targets) > 1:
        reason = f"boards of different chips in one test are not supported: {', '.join(map(str, targets))}"
        item.add_marker(pytest.mark.skip(reason=reason))
        return
    needs: dict[str, Any] = {"count": len(targets)}
    if chips:
        needs["chip"] = sorted(chips)
    if "qemu" in str(item_value(item, "embedded_services", "")):
        needs["backend"] = "qemu"
    item.add_marker(pytest.mark.esp(**needs))


def _built_for(item: pytest.Item) -> set[str]:
    """Return the chips of the build that a test without a target will flash; empty if that is not known yet."""
    from pytest_esp.embedded.app import binary_path, chips_of, find_build

    if parse_multi_dut_args(1, str(item_value(item, "skip_autoflash", "n")).partition("|")[0]) is True:
        return set()
    folder = str(item_value(item, "app_path", item.path.parent)).partition("|")[0]
    build = item_value(item, "build_dir") or find_build(folder, None, item_value(item, "config", "default"))
    path = binary_path(folder, str(build).partition("|")[0]) if build else None
    return chips_of(path) & set(CHIPS) if path and os.path.isdir(path) else set()
