"""Inspects a finished board: identity, contents, and whether it starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from pytest_esp.errors import EspError, OperationError
from pytest_esp.formats.files import ReadPath
from pytest_esp.formats.images import App
from pytest_esp.link.link import Link
from pytest_esp.operations.chip.identity import identify
from pytest_esp.operations.flash import reading, tables
from pytest_esp.operations.partitions import nvs
from pytest_esp.operations.production.config import MANUFACTURING, SERIAL_NUMBER, Boot
from pytest_esp.operations.production.factory import check_boot
from pytest_esp.operations.registry import Effect, operation


@dataclass(frozen=True)
class QualityCheck:
    """One check: its name, whether it passed, and what was found or is wrong."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection; *passed* is whether all checks passed.

    *serial_number* is that in NVS; None if it has none.
    """

    passed: bool
    checks: tuple[QualityCheck, ...]
    mac_address: str | None
    serial_number: str | None
    app: App | None


@operation(Effect.READ, group="production")
def inspect(
    link: Link,
    serial_number: str | None = None,
    elf_sha256: str | None = None,
    *,
    boot: bool = True,
    boot_wait_seconds: float = 3.0,
    expect: str | None = None,
    nvs_partition: str = "nvs",
    nvs_key_file: ReadPath | None = None,
) -> Inspection:
    """Inspect a finished board and change nothing: chip, flash, partition table, app, NVS, serial number, boot.

    Defects are failed checks, not errors.

    Args:
        serial_number: required serial number in NVS; by default it is not checked.
        elf_sha256: required ELF SHA-256 of the app (64 hex digits); by default it is not checked.
        boot: restart the board, and check that the app starts.
        boot_wait_seconds: how long to listen to the console after the restart.
        expect: text that the app must print when it starts.
        nvs_partition: name of the NVS partition.
        nvs_key_file: key of NVS encryption.
    """
    how = Boot(wait=boot_wait_seconds, expect=expect)
    return _Looking(link, nvs_partition, nvs_key_file).look(serial_number, elf_sha256, how, boot)


class _Looking:
    """An inspection in progress."""

    def __init__(self, link: Link, partition: str, key_file: str | os.PathLike[str] | None) -> None:
        self._link = link
        self._partition = partition
        self._key_file = key_file
        self._checks: list[QualityCheck] = []
        self._mac: str | None = None
        self._serial_number: str | None = None
        self._app: App | None = None

    def look(self, serial_number: str | None, elf_sha256: str | None, how: Boot, boot: bool) -> Inspection:
        self._check("chip", self._chip)
        self._check("flash", self._flash)
        self._check("partition table", self._table)
        self._check("app", lambda: self._installed(elf_sha256))
        self._check("nvs", lambda: self._nvs(serial_number))
        if boot:
            self._check("boot", lambda: self._boot(how))
        passed = all(check.passed for check in self._checks)
        return Inspection(passed, tuple(self._checks), self._mac, self._serial_number, self._app)

    def _check(self, name: str, look: Callable[[], str]) -> None:
        try:
            self._checks.append(QualityCheck(name, True, look()))
        except EspError as error:
            self._checks.append(QualityCheck(name, False, error.message))

    def _chip(self) -> str:
        who = identify(self._link)
        self._mac = who.mac_address
        if who.mac_address is not None and (
            who.mac_address in ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff") or int(who.mac_address[:2], 16) & 1
        ):
            raise OperationError(f"invalid MAC address {who.mac_address}")
        return f"{who.description}, {who.mac_address}"

    def _flash(self) -> str:
        found, promised = reading.info(self._link).size, self._link.board.spec.flash_size
        if promised is not None and found != promised:
            raise OperationError(f"the flash has {found} bytes, but boards.toml says {promised}")
        return f"{found} bytes"

    def _table(self) -> str:
        table = tables.read(self._link)
        names = ", ".join(part.name for part in table.partitions)
        return f"at {table.offset:#x}: {names}"

    def _installed(self, elf_sha256: str | None) -> str:
        installed = tables.app(self._link)
        self._app = installed.app
        if installed.app is None:
            raise OperationError(f"there is no app in {installed.slot.name}")
        if elf_sha256 not in (None, installed.app.elf_sha256):
            raise OperationError(f"{installed.slot.name} has another app: {installed.app.elf_sha256[:9]}")
        return f"{installed.app.project} {installed.app.version} in {installed.slot.name}"

    def _nvs(self, serial_number: str | None) -> str:
        contents = nvs.read(self._link, self._partition, key_file=self._key_file)
        if contents.problems:
            raise OperationError(contents.problems[0])
        for entry in contents.entries:
            if (entry.namespace, entry.key) == (MANUFACTURING, SERIAL_NUMBER):
                self._serial_number = str(entry.value)
        if serial_number not in (None, self._serial_number):
            raise OperationError(f"the serial number is {self._serial_number}, not {serial_number}")
        return f"{len(contents.entries)} values, serial number {self._serial_number}"

    def _boot(self, how: Boot) -> str:
        check_boot(self._link, how, self._app)
        return "the app starts"
