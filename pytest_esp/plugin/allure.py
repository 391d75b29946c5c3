"""What pytest-esp adds to allure's report. Imported only in runs with ``--alluredir``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import allure
import allure_commons
import pytest
from allure_commons.logger import AllureFileLogger
from allure_commons.types import AttachmentType

from pytest_esp.plugin.held_boards import Usage
from pytest_esp.plugin.reports import mask_inside
from pytest_esp.secrets import hide, hide_bytes, known
from pytest_esp.versions import required

if TYPE_CHECKING:
    from pytest_esp.rack.rack import Rack


def attach(usages: Iterable[Usage], transcripts: dict[str, str], console_logs: dict[str, Path]) -> None:
    """Attach the boards' usage, esptool's output and the console logs to the running test."""
    for usage in usages:
        allure.dynamic.label("board", usage.board)
        allure.dynamic.tag(usage.chip)
        allure.attach(json.dumps(asdict(usage), indent=2), f"board {usage.board}", AttachmentType.JSON)
    for name, text in transcripts.items():
        allure.attach(text, f"esptool on {name}", AttachmentType.TEXT)
    for name, path in console_logs.items():
        allure.attach.file(str(path), f"console of {name}", AttachmentType.TEXT)


class _DiscreetLogger(AllureFileLogger):
    """Writes the report's files with secrets masked: tests and steps with their parameters, and attachments."""

    @allure_commons.hookimpl
    def report_result(self, result: Any) -> None:
        """Write a test's result."""
        super().report_result(mask_inside(result))

    @allure_commons.hookimpl
    def report_container(self, container: Any) -> None:
        """Write fixtures."""
        super().report_container(mask_inside(container))

    @allure_commons.hookimpl
    def report_globals(self, globals_item: Any) -> None:
        """Write what does not belong to a test."""
        super().report_globals(mask_inside(globals_item))

    @allure_commons.hookimpl
    def report_attached_data(self, body: str | bytes, file_name: str) -> None:
        """Write an attachment."""
        super().report_attached_data(_masked_text(body), file_name)

    @allure_commons.hookimpl
    def report_attached_file(self, source: str, file_name: str) -> None:
        """Copy an attachment."""
        if known() and (hidden := _masked_text(before := Path(source).read_bytes())) != before:
            super().report_attached_data(hidden, file_name)
        else:
            super().report_attached_file(source, file_name)


def hide_secrets() -> None:
    """Mask all known secrets (`pytest_esp.secrets`) in what allure writes."""
    manager: Any = allure_commons.plugin_manager
    for plugin in manager.get_plugins():
        if type(plugin) is AllureFileLogger:
            # allure-pytest unregisters this very object at the end, so change its class and register it again:
            # pluggy looks up the hooks at registration.
            name = manager.get_name(plugin)
            manager.unregister(plugin)
            plugin.__class__ = _DiscreetLogger
            manager.register(plugin, name)


def _masked_text(body: str | bytes) -> str | bytes:
    if isinstance(body, str):
        return hide(body)
    try:
        body.decode()
    except UnicodeDecodeError:
        return body  # do not change binary data such as flash images
    return hide_bytes(body)


@contextlib.contextmanager
def unity_case(name: str) -> Generator[Callable[[str], None]]:
    """Record a test case of an app as a step of the running test; yield a function that attaches its log."""
    with allure.step(name):
        yield lambda log: allure.attach(log, f"log of {name}", AttachmentType.TEXT) if log else None


def drop_result(item: pytest.Item) -> None:
    """Leave *item* out of the report; allure-pytest writes a result for everything that passes through the protocol.

    Raises:
        VersionError: if the installed allure-pytest has changed.
    """
    listener: Any = item.config.pluginmanager.get_plugin("allure_listener")
    if uuid := required(listener, "_cache", "allure-pytest").pop(item.nodeid):
        listener.allure_logger.drop_test(uuid)


@contextlib.contextmanager
def unchanged_status(config: pytest.Config) -> Generator[None]:
    """Keep the running test's status: allure-pytest mistakes a skipped subtest for a skipped test."""
    listener: Any = config.pluginmanager.get_plugin("allure_listener")
    result = listener.allure_logger.get_test(None)
    status, details = result.status, result.statusDetails
    yield
    result.status, result.statusDetails = status, details


def write_environment(folder: Path, rack: Rack) -> None:
    """Write ``environment.properties``, the table on the report's first page."""
    import esptool

    lines = {
        "rack": rack.name,
        "rack.file": str(rack.path or "built-in"),
        "esptool": esptool.__version__,
        "pytest": pytest.__version__,
        **{f"board.{spec.name}": f"{spec.chip} ({spec.backend})" for spec in rack.boards.values()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    part = folder / "environment.properties.part"
    part.write_text(text, encoding="utf-8")
    part.replace(folder / "environment.properties")
