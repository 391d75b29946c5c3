"""What pytest-esp adds to junit.xml: the boards of each test, and elements for the test cases of an app.

pytest has no public way to add an element to its report, so this uses the objects of ``_pytest.junitxml``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_esp.plugin.pytest_private import add_outcome, add_output, junit_report
from pytest_esp.versions import required

_PROPERTIES = ("status", "board", "attempts")
_WITH_OUTPUT = ("system-out", "out-err", "all")


@contextlib.contextmanager
def finishing(xml: Any, report: pytest.TestReport, text: str, fault: str | None) -> Generator[None]:
    """Add to the element of a test, which pytest finishes for its last *report* inside the context.

    Args:
        xml: pytest's ``LogXML``.
        report: of the test's teardown.
        text: lines for its output; may be empty.
        fault: becomes the ``type`` of its error.
    """
    reporter = required(xml, "node_reporter", "pytest")(report)
    yield
    element = reporter.to_xml()  # the same at every call, now that it is finished
    for error in element.findall("error") if fault else ():
        error.set("type", fault)
    if not text:
        return
    output = element.find("system-out")
    if output is None:  # the schemas want it after the outcome and before what was written to stderr
        output = ElementTree.Element("system-out")
        tags = [child.tag for child in element]
        element.insert(tags.index("system-err") if "system-err" in tags else len(tags), output)
    output.text = f"{text}\n{output.text or ''}".rstrip("\n")


def add_suite_property(xml: Any, name: str, value: str) -> None:
    """Add a property of the whole suite."""
    required(xml, "add_global_property", "pytest")(name, value)


class JunitCases:
    """Moves what pytest writes for a report of a test into elements of the test's cases.

    A context manager: pytest handles the report inside it.

    Args:
        config: pytest's configuration; without ``--junit-xml`` nothing happens.
        report: the report of a subtest, or of the test.
    """

    def __init__(self, config: pytest.Config, report: pytest.TestReport) -> None:
        self._xml: Any = junit_report(config)
        self._report = report
        self._with_properties = bool(config.getoption("esp_junit_properties"))
        self._nodes = 0
        self._duration = 0.0

    def __enter__(self) -> JunitCases:
        """Remember what the test's own element contains."""
        if self._xml is not None:
            test = self._xml.node_reporter(self._report)
            self._nodes, self._duration = len(test.nodes), test.duration
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def add(self, record: Mapping[str, Any] | None, records: Iterable[Mapping[str, Any]]) -> None:
        """Add an element for the subtest's case *record*, or for each of the test's cases *records*."""
        if self._xml is None:
            return
        test = self._xml.node_reporter(self._report)
        if record is not None:
            element = self._element(test, record)
            # pytest has just added the subtest's failure or skip to the element of the whole test, and counted it.
            element.nodes += test.nodes[self._nodes :]
            del test.nodes[self._nodes :]
            test.duration = self._duration
            self._xml.open_reports[:] = [one for one in self._xml.open_reports if one is not self._report]
            self._add_log(element, record)
        for one in records:
            element = self._element(test, one)
            self._add_end(element, one)
            self._add_log(element, one)

    def _element(self, test: Any, record: Mapping[str, Any]) -> Any:
        """Return a new testcase element whose class name is the whole test."""
        element = type(test)(test.id, self._xml)
        element.add_attribute("classname", f"{test.attrs['classname']}.{test.attrs['name']}")
        element.add_attribute("name", record["name"])
        if self._xml.family == "xunit1":
            for key in ("file", "line"):
                if record.get(key) is not None:
                    element.add_attribute(key, record[key])
        element.duration = record.get("seconds", 0.0)
        if self._with_properties:
            for key in _PROPERTIES:
                if record.get(key):
                    element.add_property(key, record[key])
        self._xml.node_reporters_ordered.append(element)
        return element

    def _add_end(self, element: Any, record: Mapping[str, Any]) -> None:
        """Write and count the outcome of a case that does not have a report."""
        if record.get("status") == "passed":
            self._xml.add_stats("passed")
            return
        tag = "skipped" if record.get("status") == "ignored" else "failure"
        message = str(record.get("message") or record.get("status"))
        add_outcome(element, tag, message, record.get("text"))

    def _add_log(self, element: Any, record: Mapping[str, Any]) -> None:
        keys = () if self._with_properties else _PROPERTIES
        facts = ", ".join(f"{key}: {record[key]}" for key in keys if record.get(key))
        log = record.get("log") if self._xml.logging in _WITH_OUTPUT else None
        if text := "\n".join(filter(None, (facts, log))):
            add_output(element, self._report, text)
