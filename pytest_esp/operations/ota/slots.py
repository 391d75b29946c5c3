"""Updates over the wire: into the slot that is not running, then otadata, so that a board always has an app.

What the bootloader does with otadata: ESP-IDF, ``bootloader_utility.c`` and ``esp_ota_ops.c``. The slot that would
start is never written, and a valid entry of otadata is changed only if another entry, or none, selects the right app:
if the power fails at any time, the old app or the new one starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from esp_idf_defs.otadata import OtaDataSelectEntry, OtaImageState
from esptool.targets import CHIP_DEFS

from pytest_esp.errors import FirmwareError, OperationError, RefusedError
from pytest_esp.formats.files import ReadPath
from pytest_esp.formats.images import APP_HEAD_SIZE, App, app_of, chip_of
from pytest_esp.formats.partition_table import Partition, default_app, ota_slots
from pytest_esp.link.console import ConsoleError, CrashError
from pytest_esp.link.link import Link
from pytest_esp.link.logs import Progress
from pytest_esp.operations.firmware.image_report import report
from pytest_esp.operations.flash import reading, tables, writing
from pytest_esp.operations.flash.access import reach
from pytest_esp.operations.flash.header import beyond_header
from pytest_esp.operations.flash.tables import OtaData, OtaEntry
from pytest_esp.operations.ota.package import Package, unpack
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import efuse, posture
from pytest_esp.secrets import hide

_BOOT_TIMEOUT = 15.0  # seconds: a bootloader hashes the whole app before it prints which one it starts
_SETTLING = 1.0  # seconds
_LOADED = re.compile(rb"Loaded app from partition at offset 0x([0-9a-f]+)\s")
_HOPELESS = re.compile(rb"No bootable app partitions|invalid header: 0x|load partition table error!")


@dataclass(frozen=True)
class OtaReadiness:
    """Whether and where an update can be installed. Sizes are in bytes.

    Attributes:
        running: the partition that starts now; None if no partition has an app.
        next_slot: the partition for the next update.
        room: size available for its app.
        otadata: ``"ready"``, or ``"repaired"`` if it selected no app; it now selects the one that starts.
        bootloader: the chip that the bootloader in flash is for; None if there is no bootloader.
        warnings: what would prevent an update from starting.
    """

    running: str | None
    next_slot: str
    room: int
    otadata: Literal["ready", "repaired"]
    bootloader: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class OtaUpdate:
    """The result of an update or a rollback.

    Attributes:
        slot: the partition that starts now; *previous* the one that started before.
        sequence: of its entry in otadata; None if no entry selects a partition any more (the factory app starts).
        app: the app in *slot*.
        bytes_written, bytes_skipped: of the image; unchanged parts are not written again.
        started: whether the bootloader reported starting *slot*; None if it was not reset, or prints nothing.
        output: console output of that boot.
    """

    slot: str
    previous: str | None
    sequence: int | None
    app: App | None
    bytes_written: int
    bytes_skipped: int
    started: bool | None
    output: str


@operation(Effect.WRITE, group="ota")
def prepare(link: Link) -> OtaReadiness:
    """Check that a board can be updated (table, otadata, slots, bootloader), and repair damaged otadata.

    Blank otadata is valid: the bootloader then starts the factory app or the first slot.

    Raises:
        OperationError: if there is no partition table, otadata or second app partition; or flash is encrypted.
    """
    state = _State(link)
    bootloader = chip_of(reading.read(link, CHIP_DEFS[state.chip].BOOTLOADER_FLASH_OFFSET, APP_HEAD_SIZE).data)
    repaired = state.otadata_is_damaged
    if repaired and state.running is not None and state.running in state.slots:
        state.name(state.running)
    elif repaired:
        writing.erase(link, state.otadata.partition.offset, state.otadata.partition.size)
    missing = {
        "there is no bootloader in flash": bootloader is None,
        f"the bootloader is for {bootloader}": bootloader not in (None, state.chip),
        "no partition has an app: nothing starts until an update is installed": state.running is None,
    }
    return OtaReadiness(
        running=state.running.name if state.running else None,
        next_slot=state.target.name,
        room=state.target.size,
        otadata="repaired" if repaired else "ready",
        bootloader=bootloader,
        warnings=(*(words for words, holds in missing.items() if holds), *beyond_header(link, state.table)),
    )


@operation(Effect.WRITE, group="ota")
def deploy(
    link: Link,
    package: ReadPath,
    *,
    public_key_file: ReadPath | None = None,
    on_trial: bool = False,
    start: bool = True,
    progress: Progress | None = None,
) -> OtaUpdate:
    """Install an update over the wire as the app itself would: into the slot that is not running, then otadata.

    If the power fails at any time, the old app or the new one starts.

    Args:
        package: file of the package.
        public_key_file: public key in PEM; the package must then be signed with its private key.
        on_trial: mark the app as new: a bootloader with rollback starts it once, and then the old one again unless the
            app has confirmed itself (``esp_ota_mark_app_valid_cancel_rollback``).
        start: reset the board, and check that the bootloader starts the new app.
        progress: called with bytes done and total.

    Raises:
        RefusedError: if the package is not signed as required.
        FirmwareError: if it is for another chip, too large, or older than the eFuses allow (anti-rollback).
        OperationError: if the package is damaged, the board cannot be updated (see `prepare`), or does not start it.
    """
    update, image = unpack(package, public_key_file)
    state = _State(link)
    _check_fits(update, state)
    _check_secure_version(link, image, state.chip)
    written = writing.write(link, image, state.target.offset, progress=progress)
    sequence = state.name(state.target, OtaImageState.NEW if on_trial else OtaImageState.UNDEFINED)
    started, output = _start(link, state.target) if start else (None, "")
    return OtaUpdate(
        slot=state.target.name,
        previous=state.running.name if state.running else None,
        sequence=sequence,
        app=app_of(image),
        bytes_written=written.bytes_written,
        bytes_skipped=written.bytes_skipped,
        started=started,
        output=output,
    )


@operation(Effect.WRITE, group="ota")
def rollback(link: Link, *, start: bool = True) -> OtaUpdate:
    """Roll back to the app before the last update, by otadata's sequence and state; no app is erased.

    If the bootloader then finds the other entry or the factory app, the entry of the running app is marked as invalid,
    like ``esp_ota_mark_app_invalid_rollback``; otherwise an entry for the other app is written.

    Args:
        start: reset the board, and check that the bootloader starts that app.

    Raises:
        OperationError: if there is no other app to roll back to, the board cannot be updated, or something else starts.
    """
    state = _State(link)
    slot, sequence = state.go_back()
    started, output = _start(link, slot) if start else (None, "")
    return OtaUpdate(
        slot=slot.name,
        previous=state.running.name if state.running else None,
        sequence=sequence,
        app=state.apps.get(slot.name),
        bytes_written=0,
        bytes_skipped=0,
        started=started,
        output=output,
    )


# -- state of the slots


class _State:
    """The slots of a board, their contents, and otadata.

    Attributes:
        apps: descriptors of the apps, by partition; None for an image without one.
        running: what starts now: the first partition with an app, in the bootloader's order.
        target: the slot for the next update: the one after the running one.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        with reach(link, "auto", "looking at the slots") as access:
            self.chip = access.chip
        if self.chip == "esp8266":
            raise OperationError("the ESP8266 has no otadata", hint="ESP8266 updates are not supported")
        _refuse_encrypted(link)
        self.table = tables.read(link).partitions
        self.otadata: OtaData = tables.otadata(link)
        self.slots = ota_slots(self.table)
        first = default_app(self.table)
        self.factory = first if first is not None and first not in self.slots else None
        if len(self.slots) + bool(self.factory) < 2:
            raise OperationError(
                f"{self.slots[0].name} is the only app partition: an update would overwrite the running app",
                hint="flash a table with two OTA partitions",
            )
        self.apps = dict(self._find_apps())
        self.running = next((part for part in self._order() if part.name in self.apps), None)
        at = self.slots.index(self.running) + 1 if self.running in self.slots else 0
        self.target = self.slots[at % len(self.slots)]

    def _find_apps(self) -> Iterator[tuple[str, App | None]]:
        for part in (*self.slots, *([self.factory] if self.factory else [])):
            head = reading.read(self._link, part.offset, APP_HEAD_SIZE).data
            if chip_of(head) == self.chip:
                yield part.name, app_of(head)

    def _order(self, passed_over: OtaEntry | None = None) -> list[Partition]:
        """Return the partitions in the order in which the bootloader tries them, ignoring the entry *passed_over*."""
        factory = [self.factory] if self.factory else []
        newest = self._newest(passed_over)
        if newest is None:
            return factory + self.slots
        chosen = [part.name for part in self.slots].index(str(newest.slot))
        return self.slots[chosen::-1] + factory + self.slots[chosen + 1 :]

    def _newest(self, passed_over: OtaEntry | None = None) -> OtaEntry | None:
        usable = [
            entry
            for entry in self.otadata.entries
            if entry.valid and entry.state not in ("INVALID", "ABORTED") and entry is not passed_over
        ]
        return max(usable, key=lambda entry: entry.sequence or 0, default=None)

    @property
    def otadata_is_damaged(self) -> bool:
        """Return whether otadata has contents, but no valid entry."""
        place = self.otadata.partition
        return self._newest() is None and any(
            reading.read(self._link, entry.address, OtaDataSelectEntry.SIZE).data.strip(b"\xff")
            for entry in self.otadata.entries
            if place.offset <= entry.address
        )

    # -- changes

    def name(self, slot: Partition, state: OtaImageState = OtaImageState.UNDEFINED) -> int:
        """Make otadata select *slot*, in the entry that is not in effect; return its sequence number."""
        newest = self._newest()
        number = self.slots.index(slot)
        if newest is None:
            entry = OtaDataSelectEntry.from_ota_slot(number)
        else:
            entry = OtaDataSelectEntry(newest.sequence or 0).incremented(number, len(self.slots))
        entry.ota_state = state
        place = next(old for old in self.otadata.entries if old is not newest)
        self._write(place.address, entry)
        return entry.seq

    def go_back(self) -> tuple[Partition, int | None]:
        """Make otadata select the app before the running one; return its partition and sequence number."""
        newest = self._newest()
        if newest is None or self.running is None or newest.slot != self.running.name:
            raise OperationError(
                "cannot roll back: otadata does not select a running app",
                hint="install an update first; the board starts its default app",
            )
        then = next((part for part in self._order(newest) if part.name in self.apps), None)
        if then is not None and then != self.running:
            self._write(newest.address, OtaDataSelectEntry(newest.sequence or 0, OtaImageState.INVALID))
            other = self._newest(newest)
            return then, other.sequence if other else None
        others = [part for part in self.slots if part.name in self.apps and part != self.running]
        if not others:
            raise OperationError(
                f"cannot roll back: there is no other app than that in {self.running.name}",
                hint="deploy the wanted update instead",
            )
        return others[-1], self.name(others[-1], OtaImageState.VALID)

    def _write(self, address: int, entry: OtaDataSelectEntry) -> None:
        writing.write(self._link, entry.to_bytes(), address, skip_unchanged=False)


def _refuse_encrypted(link: Link) -> None:
    if link.board.direct_flash() is None and posture.posture(link).flash_encryption:
        raise RefusedError(
            "flash is encrypted: an app written from outside would not start",
            hint="update over HTTP, through the running app",
        )


def _check_fits(update: Package, state: _State) -> None:
    manifest = update.manifest
    if manifest.chip_type != state.chip:
        raise FirmwareError(
            f"the update is for {manifest.chip_type}, not for the {CHIP_DEFS[state.chip].CHIP_NAME}",
            hint="nothing was written",
        )
    if manifest.size > state.target.size:
        raise FirmwareError(
            f"the update has {manifest.size:#x} bytes, but {state.target.name} has only {state.target.size:#x}",
            hint="nothing was written; use a partition table with larger app partitions",
        )


def _check_secure_version(link: Link, image: bytes, chip: str) -> None:
    """Reject an app that a bootloader with anti-rollback would not start (``CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK``).

    An ESP32 has its version in the user block (BLOCK3), where bits may mean anything: not checked.
    """
    details = report(image, "the update", 0, chip).app_details
    if details is None or chip == "esp32":
        return
    wanted = (efuse.read(link, "SECURE_VERSION").bits or "").count("1")
    if details.secure_version < wanted:
        raise FirmwareError(
            f"the update has secure version {details.secure_version}, but the eFuses of this chip require {wanted}",
            hint="nothing was written; a bootloader with anti-rollback does not start it. Build it with a higher "
            "CONFIG_BOOTLOADER_APP_SECURE_VERSION",
        )


# -- verification


def _start(link: Link, slot: Partition) -> tuple[bool | None, str]:
    """Start the board; return whether its bootloader reported starting *slot* (None: it prints nothing).

    Raises:
        OperationError: if something else, or nothing, starts.
    """
    console = link.boot()
    try:
        match = console.expect([_LOADED, _HOPELESS], timeout=_BOOT_TIMEOUT)
        if match.index == 0:
            console.listen(_SETTLING)  # an app that crashes at once has not started
    except CrashError as error:
        raise OperationError(
            f"the board crashes instead of starting {slot.name}: {error.crash.describe()}",
            hint="roll back to the previous app",
        ) from error
    except ConsoleError:
        return None, console.text
    found = match.group(1) if match.index == 0 else None
    offset = int(found, 16) if found is not None else None
    if offset != slot.offset:
        what = f"the app at {offset:#x}" if offset is not None else "nothing"
        raise OperationError(
            f"the board starts {what} instead of {slot.name} at {slot.offset:#x}",
            hint="the bootloader rejects the image: check its signature and its minimum chip revision",
            details={"output": hide(console.text)[-2000:]},
        )
    return True, console.text
