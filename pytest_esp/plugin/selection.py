"""Choose the boards of the rack that each test can run on: parametrisation, markers, and skips with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import pytest

from pytest_esp.errors import FirmwareError, RackError
from pytest_esp.names import nearest
from pytest_esp.plugin.firmware import NOT_NAMED, policy_of, sources_of, why_not
from pytest_esp.plugin.known import known
from pytest_esp.plugin.options import KINDS, options_of
from pytest_esp.plugin.pytest_private import compile_markers, fixtures_from
from pytest_esp.plugin.wanted import (
    FIXTURES,
    SESSION_FIXTURES,
    MarkerError,
    Wanted,
    uses_board,
    uses_session_board,
    wanted,
)
from pytest_esp.rack.chips import AUTO, CHIPS

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack
    from pytest_esp.rack.requirement import Requirement
    from pytest_esp.rack.spec import BoardSpec

EACH = "_esp_each"
"""The parameter that ``each=`` adds to a test."""

_FIXTURES = "pytest_esp.plugin.fixtures"
_NOBODY = "no-board"
_KIND_OF = {"qemu": "qemu", "sim": "sim"}


@dataclass(frozen=True)
class Plan:
    """Where a test can run.

    Attributes:
        wanted: what the test needs.
        boards: names of the boards that can run it, in the rack's order.
        leases: whether its fixtures lease a board.
        reason: why no board can ever run it; None if one can.
        firmware: the paths to search for its firmware.
        problem: what is wrong with that firmware; the test fails without taking a board.
        would_do: names of the boards that could run it if QEMU was installed; the test gets the markers of their
            kinds.
        relies: names of the boards of which the chip decides whether they can, as their entries do not say it.
    """

    wanted: Wanted
    boards: tuple[str, ...]
    leases: bool
    reason: str | None
    firmware: tuple[Path, ...] = ()
    problem: str | None = None
    would_do: tuple[str, ...] = ()
    relies: frozenset[str] = frozenset()

    @property
    def takes_boards(self) -> bool:
        """Whether the test will lease boards when it runs."""
        return self.leases and self.reason is None and self.problem is None

    @property
    def firmware_key(self) -> str:
        """Return a key that is equal for tests with the same firmware; empty for tests without."""
        return os.pathsep.join(map(str, self.firmware))


PLAN = pytest.StashKey[Plan]()
_RACK = pytest.StashKey["Rack | RackError"]()
_PROBLEMS = pytest.StashKey[dict[str, None]]()
_OWN_MARKS = pytest.StashKey[set[str]]()
_NO_QEMU = pytest.StashKey[dict[str, str]]()


def plan_of(item: pytest.Item | None) -> Plan | None:
    """Return an item's plan; None if it does not need boards."""
    return None if item is None else item.stash.get(PLAN, None)


def problems_of(config: pytest.Config) -> list[str]:
    """Return the problems of the rack file and the markers, each once."""
    return list(config.stash.get(_PROBLEMS, {}))


def loaded_rack(config: pytest.Config) -> Rack | None:
    """Return the rack if it was loaded without an error, else None."""
    loaded = config.stash.get(_RACK, None)
    return None if isinstance(loaded, RackError) else loaded


def rack_of(config: pytest.Config) -> Rack:
    """Return the rack of this run, read at the first call.

    Raises:
        RackError: if its file is missing or invalid.
    """
    if _RACK not in config.stash:
        config.stash[_RACK] = _load(config)
    loaded = config.stash[_RACK]
    if isinstance(loaded, RackError):
        raise loaded
    return loaded


def _load(config: pytest.Config) -> Rack | RackError:
    from pytest_esp.rack.config import load_rack

    options = options_of(config)
    try:
        rack = load_rack(options.rack, ports=options.ports)
        for name in options.boards:
            if name not in rack.boards:
                raise RackError(
                    f"--esp-board {name}: the rack {rack.name!r} has no such board",
                    hint=f"did you mean {nearest(name, rack.boards)}?",
                )
    except RackError as error:
        return error
    return rack


def available(config: pytest.Config) -> list[BoardSpec]:
    """Return the boards of the rack that ``--esp-board``, ``--esp-chip`` and ``--esp-backend`` select, or may select.

    Their entries are filled in with what is known of their chips.

    Raises:
        RackError: see `rack_of`.
    """
    options = options_of(config)
    rack = rack_of(config)
    return [
        spec
        for spec in (known(config, entry, rack).spec for entry in rack.boards.values())
        if (not options.boards or spec.name in options.boards)
        and (not options.chips or spec.chip in (*options.chips, AUTO))
        and (not options.backends or spec.backend in options.backends)
    ]


# -- each="chip", each="board"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests whose marker has ``each=``: one test per chip or board of the rack."""
    if metafunc.definition.get_closest_marker("esp") is None:
        return
    try:
        want = wanted(metafunc.definition.iter_markers(), fixtures_of(metafunc.definition))
        if want.each is None:
            return
        able = _able(metafunc.config, want, _sources(metafunc.definition, want))
    except (MarkerError, RackError, FirmwareError):
        return  # `plan_items` reports it, once for the whole run or for each test
    names = dict.fromkeys(spec.chip if want.each == "chip" and spec.chip != AUTO else spec.name for spec in able)
    metafunc.fixturenames.append(EACH)
    metafunc.parametrize(EACH, list(names) or [None], ids=list(names) or [_NOBODY])


def _each_value(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else cast("dict[str, str | None]", callspec.params).get(EACH)


# -- plans


def plan_items(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every item that needs a board its plan and markers; collect the errors for `problems_of`."""
    problems = config.stash.setdefault(_PROBLEMS, {})
    strict = options_of(config).strict
    if config.getoption("esp_rack") or config.getoption("esp_port") or any(map(_names_rack, items)):
        try:
            rack_of(config)
        except RackError as error:
            problems[str(error)] = None
    for item in items:
        names = fixtures_of(item)
        if item.get_closest_marker("esp") is None and not uses_board(names):
            continue
        try:
            item.stash[PLAN] = plan = make_plan(item, leases=uses_board(names))
            _mark(item, plan, strict)
        except MarkerError as error:
            problems[f"{_where(item)}: {error}"] = None
        except RackError as error:
            problems[str(error)] = None


def _names_rack(item: pytest.Item) -> bool:
    """Return whether the test uses the plugin's fixture `rack`, not a project's fixture of that name."""
    return bool(fixtures_from(item, ["rack"], _FIXTURES))


def fixtures_of(item: pytest.Item) -> frozenset[str]:
    """Return the plugin's fixtures that *item* uses and that lease boards, without a project's of the same names."""
    return fixtures_from(item, FIXTURES | SESSION_FIXTURES, _FIXTURES)


def make_plan(item: pytest.Item, *, leases: bool) -> Plan:
    """Return where *item* can run.

    Raises:
        MarkerError: if one of its markers is invalid.
        RackError: see `rack_of`.
    """
    config = item.config
    names = fixtures_of(item)
    want = wanted(item.iter_markers(), names)
    if uses_session_board(names):
        want = Wanted(scope="session", firmware=want.firmware)
    sources = _sources(item, want)
    if want.firmware is not None and not sources:
        return Plan(want, (), leases, NOT_NAMED)
    try:
        able = _able(config, want, sources)
    except FirmwareError as error:
        return Plan(want, (), leases, None, sources, str(error))
    each = _each_value(item)
    if each is not None:
        able = [spec for spec in able if each in (spec.chip, spec.name)]
    if len(able) < want.count:
        return Plan(want, (), leases, _reason(config, want, sources, able))
    selected = _selected_by_marker(item, able)
    able = selected if len(selected) >= want.count else able
    ready = [spec for spec in able if not _why_no_qemu(config, spec)]
    if len(ready) < want.count:
        lacks = "; ".join(dict.fromkeys(filter(None, (_why_no_qemu(config, spec) for spec in able))))
        return Plan(want, (), leases, lacks, sources, would_do=tuple(spec.name for spec in able))
    relies = frozenset(spec.name for spec in ready if _relies(config, want, spec.name))
    return Plan(want, tuple(spec.name for spec in ready), leases, None, sources, relies=relies)


def _relies(config: pytest.Config, want: Wanted, name: str) -> bool:
    """Return whether the chip of a board decides whether a test can run on it: its entry does not say it."""
    entry = rack_of(config).boards[name]
    chip_decides = want.chip or want.firmware is not None or options_of(config).chips or _marker_expression(config)
    return (entry.chip == AUTO and bool(chip_decides)) or _requirement(want).verdict(entry) == "unknown"


def _sources(item: pytest.Item, want: Wanted) -> tuple[Path, ...]:
    return () if want.firmware is None else sources_of(item.config, item.path.parent, want.firmware)


def _able(config: pytest.Config, want: Wanted, sources: tuple[Path, ...]) -> list[BoardSpec]:
    return [spec for spec in available(config) if not _why_not(config, want, sources, spec)]


def _why_not(config: pytest.Config, want: Wanted, sources: tuple[Path, ...], spec: BoardSpec) -> str:
    """Return why *spec* cannot run the test; empty if it can."""
    for effect, needed in (("burn", want.burns), ("erase", want.erases), ("write", _writes(config, want))):
        if needed and effect not in spec.allow:
            return f"it does not allow {effect!r}"
    if want.burns and not spec.virtual and not options_of(config).allow_burn:
        return "burning eFuses of real boards requires --esp-allow-burn"
    if want.faults and not spec.virtual and spec.faults is None:
        return "fault injection requires a virtual board, or `faults` in the board's entry"
    entry = rack_of(config).boards[spec.name]
    lack = _requirement(want).why_not(spec, asked=known(config, entry, rack_of(config)).facts is not None)
    return lack or ("" if want.firmware is None else why_not(config, sources, spec.chip))


def _why_no_qemu(config: pytest.Config, spec: BoardSpec) -> str:
    """Return why QEMU cannot run the board on this machine; empty if it can, and for other backends."""
    if spec.backend != "qemu":
        return ""
    known = config.stash.setdefault(_NO_QEMU, {})
    if spec.chip not in known:
        from pytest_esp.qemu.find import why_missing

        known[spec.chip] = why_missing(spec.chip) or ""
    return known[spec.chip]


def _writes(config: pytest.Config, want: Wanted) -> bool:
    return want.firmware is not None and policy_of(config, want.firmware) != "never"


def _requirement(want: Wanted) -> Requirement:
    from pytest_esp.rack.requirement import Requirement

    try:
        return Requirement(
            chips=want.chip,
            backends=want.backend,
            boards=(want.board,) if want.board else (),
            features=want.features,
            flash=want.flash,
            revision=want.revision,
            crystal=want.crystal,
        )
    except RackError as error:
        raise MarkerError(f"@pytest.mark.esp: {error}") from error


def _reason(
    config: pytest.Config,
    want: Wanted,
    sources: tuple[Path, ...],
    able: list[BoardSpec],
    unfit: dict[str, str] | None = None,
) -> str:
    rack = rack_of(config)
    boards = available(config)
    if not boards:
        return f"--esp-board, --esp-chip and --esp-backend select no board of the rack {rack.name!r}"
    lacks = {spec.name: _why_not(config, want, sources, spec) for spec in boards} | (unfit or {})
    remarks = {name: known(config, rack.boards[name], rack).remark for name in lacks if _relies(config, want, name)}
    listed = "; ".join(f"{name}: {why}{remarks.get(name, '')}" for name, why in lacks.items() if why)
    have = f"only {len(able)} of {want.count} boards" if able else "no board"
    return f"{have} in the rack {rack.name!r} can run this test" + (f" ({listed})" if listed else "")


def why_unfit(item: pytest.Item, plan: Plan, name: str) -> str:
    """Return why a board of *plan* cannot run *item* after all, by what is known of its chip now; empty if it can."""
    if name not in plan.relies:
        return ""
    config = item.config
    spec = known(config, rack_of(config).boards[name], rack_of(config)).spec
    chips = options_of(config).chips
    if chips and spec.chip not in (*chips, AUTO):
        return f"its chip is {spec.chip}, but --esp-chip selects {', '.join(chips)}"
    if not _selected_by_marker(item, [spec]):
        return f"its chip is {spec.chip}, with which -m does not select the test"
    if (each := _each_value(item)) not in (None, spec.chip, spec.name):
        return f"its chip is {spec.chip}, but the test is for {each}"
    return _why_not(config, plan.wanted, plan.firmware, spec)


def give_up(item: pytest.Item, plan: Plan) -> NoReturn:
    """Skip a test whose boards have turned out not to match; in a strict run, fail it."""
    config = item.config
    unfit = {name: why_unfit(item, plan, name) for name in plan.boards}
    able = [rack_of(config).boards[name] for name, why in unfit.items() if not why]
    reason = _reason(config, plan.wanted, plan.firmware, able, unfit)
    item.stash[PLAN] = replace(plan, boards=(), reason=reason)
    refuse_without_board(item)
    pytest.skip(reason)


# -- markers


def kind_of(spec: BoardSpec) -> str:
    """Return ``"hardware"``, ``"qemu"`` or ``"sim"``."""
    return _KIND_OF.get(spec.backend, "hardware")


def _own_marks(item: pytest.Item) -> set[str]:
    """Return the names of an item's marks without those that `_mark` has added."""
    if _OWN_MARKS not in item.stash:
        item.stash[_OWN_MARKS] = {mark.name for mark in item.iter_markers()} - set(KINDS)
    return item.stash[_OWN_MARKS]


def _mark(item: pytest.Item, plan: Plan, strict: bool) -> None:
    _own_marks(item)  # kept for later
    if plan.reason is not None and not strict:
        item.add_marker(pytest.mark.skip(reason=plan.reason))
    rack = rack_of(item.config)
    specs = [known(item.config, rack.boards[name], rack).spec for name in plan.boards or plan.would_do]
    names = [kind_of(spec) for spec in specs]
    names += [chip for spec in specs if (chip := _chip_for_marker(item, plan.wanted, spec))]
    if strict and not specs:
        names = _marks_of_missing_boards(item, plan.wanted)
    for name in dict.fromkeys(names):
        item.add_marker(getattr(pytest.mark, name))


def _chip_for_marker(item: pytest.Item, want: Wanted, spec: BoardSpec) -> str | None:
    """Return a board's chip, or one that it may be: with ``-m``, one that selects the test."""
    if spec.chip != AUTO:
        return spec.chip
    select = _marker_expression(item.config)
    if select is None:
        return want.chip[0] if want.chip else None
    own = _own_marks(item)
    possible = [None, *CHIPS] if not want.chip else want.chip
    return next((chip for chip in possible if select(own | {kind_of(spec), *filter(None, [chip])})), None)


def _marks_of_missing_boards(item: pytest.Item, want: Wanted) -> list[str]:
    """Return marks of a board that the rack lacks, with which ``-m`` selects the test: it has to fail."""
    select = _marker_expression(item.config)
    own = _own_marks(item)
    kinds = dict.fromkeys(_KIND_OF.get(backend, "hardware") for backend in want.backend) if want.backend else KINDS
    pairs = [[kind, chip] for kind in kinds for chip in want.chip or CHIPS]
    return next((pair for pair in pairs if select is None or select(own | {*pair})), [])


def _selected_by_marker(item: pytest.Item, able: list[BoardSpec]) -> list[BoardSpec]:
    """Return the boards with which ``-m`` selects the item: with ``-m "not hardware"``, no real board is leased."""
    select = _marker_expression(item.config)
    if select is None:
        return able
    own = _own_marks(item)
    return [
        spec
        for spec in able
        if any(select(own | {kind_of(spec), chip}) for chip in ([spec.chip] if spec.chip != AUTO else CHIPS))
    ]


def _marker_expression(config: pytest.Config) -> Callable[[set[str]], bool] | None:
    text = str(config.getoption("markexpr") or "")
    return compile_markers(text) if text else None


# -- running


def refuse_without_board(item: pytest.Item) -> None:
    """Fail a test that no board can run, in a strict run; in other runs it already has a skip marker."""
    plan = plan_of(item)
    if plan is not None and plan.reason is not None and options_of(item.config).strict:
        pytest.fail(f"{plan.reason} (--esp-strict)", pytrace=False)


def group_by_board(items: list[pytest.Item]) -> None:
    """Group neighbouring tests that ``each=`` runs on several boards by board: all tests on one, then all on the next.

    In all other respects tests keep the order in which they stand in their module and class: one may rely on another.
    """
    begin = 0
    for index in range(1, len(items) + 1):
        if index == len(items) or _group_of(items[index]) != _group_of(items[begin]):
            if _group_of(items[begin])[1]:
                run = items[begin:index]
                values = list(dict.fromkeys(map(_each_value, run)))
                items[begin:index] = sorted(run, key=lambda item: values.index(_each_value(item)))
            begin = index


def _group_of(item: pytest.Item) -> tuple[pytest.Collector | None, bool]:
    return item.parent, _each_value(item) is not None


def _where(item: pytest.Item) -> str:
    path, line, _ = item.location
    return f"{path}:{(line or 0) + 1}: {item.name}"
