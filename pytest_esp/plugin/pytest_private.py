"""What the plugin uses of pytest that is not in its documented API.

Nothing here is imported or looked up before it is used: a pytest that has changed breaks only what needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from pytest_esp.versions import required, required_module

_PACKAGE = "pytest"


def fixtures_from(item: pytest.Item, names: Iterable[str], module: str) -> frozenset[str]:
    """Return those of the fixtures *names* that *item* gets from *module*.

    A fixture that overrides one of the module counts only if it requests the one that it overrides.

    Raises:
        VersionError: like all functions here, if the installed pytest has changed.
    """
    used = set(names).intersection(getattr(item, "fixturenames", ()))
    if not used:
        return frozenset()
    info: Any = required(item, "_fixtureinfo", _PACKAGE)
    found: Mapping[str, Sequence[Any]] = required(info, "name2fixturedefs", _PACKAGE)
    return frozenset(name for name in used if _reaches(name, found.get(name, ()), module))


def _reaches(name: str, definitions: Sequence[Any], module: str) -> bool:
    """Return whether the last of *definitions*, each of which overrides the one before, is or requests *module*'s."""
    for definition in reversed(definitions):
        if definition.func.__module__ == module:
            return True
        if name not in definition.argnames:
            return False
    return False


def current_item(request: pytest.FixtureRequest) -> pytest.Function:
    """Return the test that is being set up: the first to need a session's fixture, which *request* belongs to."""
    return required(request, "_pyfuncitem", _PACKAGE)


def forget_plugin(manager: pytest.PytestPluginManager, plugin: object) -> None:
    """Forget that *plugin*, which is unregistered, was registered: its fixtures are then not collected."""
    hook: Any = manager.hook.pytest_plugin_registered
    history: list[tuple[Mapping[str, object], object]] = required(hook, "_call_history", "pluggy")
    history[:] = [call for call in history if call[0].get("plugin") is not plugin]


def tear_down(session: pytest.Session, next_item: pytest.Item | None) -> None:
    """Tear down all that *next_item* does not need."""
    state: Any = required(session, "_setupstate", _PACKAGE)
    required(state, "teardown_exact", _PACKAGE)(next_item)


def compile_markers(text: str) -> Callable[[set[str]], bool] | None:
    """Return what evaluates *text*, the expression of ``-m``, for the names of a test's markers.

    Returns:
        None if the expression is wrong: pytest reports it a little later.
    """
    marks = required_module("_pytest.mark.expression", _PACKAGE)
    try:
        expression = required(marks, "Expression", _PACKAGE).compile(text)
    except (SyntaxError, pytest.UsageError):
        return None

    def select(names: set[str]) -> bool:
        def matches(name: str, /, **_: str | int | bool | None) -> bool:
            return name in names

        return expression.evaluate(matches)

    return select


# -- junit.xml


def junit_report(config: pytest.Config) -> Any:
    """Return pytest's ``LogXML``; None if the run writes no junit.xml."""
    return config.stash.get(required(_junitxml(), "xml_key", _PACKAGE), None)


def add_outcome(element: Any, tag: str, message: str, text: str | None) -> None:
    """Add ``<failure>`` or ``<skipped>`` to the element of a test case, a ``_NodeReporter`` of pytest."""
    escape = required(_junitxml(), "bin_xml_escape", _PACKAGE)
    required(element, "_add_simple", _PACKAGE)(tag, escape(message), text)


def add_output(element: Any, report: pytest.TestReport, text: str) -> None:
    """Add ``<system-out>`` to the element of a test case."""
    required(element, "_write_content", _PACKAGE)(report, text, "system-out")


def _junitxml() -> Any:
    return required_module("_pytest.junitxml", _PACKAGE)
