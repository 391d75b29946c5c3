"""Updates through the wire: into the slot that does not run, and otadata last, so that a board always has an app.

What the bootloader does with otadata: ESP-IDF, ``bootloader_utility.c`` and ``esp_ota_ops.c``. No slot is written while
it is the one that starts, and an entry that counts is only changed where another one, or none, means the right app:
whenever the power is cut, the old app starts or the new one.
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
from pytest_esp.operations.flash.tables import OtaData, OtaEntry
from pytest_esp.operations.ota.package import Package, unpack
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security import efuse, posture
from pytest_esp.secrets import hide

_BOOT_TIMEOUT = 15.0  # seconds: a bootloader reads and hashes the whole app before it says which one it starts
_SETTLING = 1.0  # seconds
_LOADED = re.compile(rb"Loaded app from partition at offset 0x([0-9a-f]+)\s")
_HOPELESS = re.compile(rb"No bootable app partitions|invalid header: 0x|load partition table error!")


@dataclass(frozen=True)
class OtaReadiness:
    """Whether and where an update would go. Sizes are bytes.

    Attributes:
        running: the partition that starts now; None if none has an app.
        next_slot: the partition that takes the next update.
        room: for its app.
        otadata: ``"ready"``, or ``"repaired"`` where it named no app: it now names the one that starts.
        bootloader: the chip that the bootloader in flash is for; None if there is none.
        warnings: what would keep an update from starting.
    """

    running: str | None
    next_slot: str
    room: int
    otadata: Literal["ready", "repaired"]
    bootloader: str | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class OtaUpdate:
    """What an update or a way back has done.

    Attributes:
        slot: the partition that is to start; *previous* the one that did.
        sequence: of its entry in otadata; None where that names no partition any more (the factory app starts).
        app: what is in *slot*.
        bytes_written, bytes_skipped: of the image; what was there already is not written again.
        started: whether the bootloader said that it starts *slot*; None if it was not asked to, or says nothing.
        output: of that boot.
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
    """Check that a board can take an update (table, otadata, slots, bootloader), and repair damaged otadata.

    Blank otadata is fine: the bootloader then begins with the factory app or the first slot.

    Raises:
        OperationError: if there is no partition table, no otadata, or no second partition for an app; or flash is
            encrypted.
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
        "no partition has an app: nothing starts until an update is there": state.running is None,
    }
    return OtaReadiness(
        running=state.running.name if state.running else None,
        next_slot=state.target.name,
        room=state.target.size,
        otadata="repaired" if repaired else "ready",
        bootloader=bootloader,
        warnings=tuple(words for words, holds in missing.items() if holds),
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
    """Install an update through the wire as the app itself would: into the slot that does not run, then otadata.

    If the power is cut in the middle, the old app starts or the new one.

    Args:
        package: its file.
        public_key_file: a public key in PEM; then the package must be signed with its private key.
        on_trial: mark the app as new: a bootloader with rollback starts it once, and the old one again unless the app
            has confirmed itself (``esp_ota_mark_app_valid_cancel_rollback``).
        start: reset the board, and see that the bootloader starts the new app.
        progress: called with bytes done and to do.

    Raises:
        RefusedError: if the package is not signed as wanted.
        FirmwareError: if it is for another chip, too large, or older than the chip's eFuses allow (anti-rollback).
        OperationError: if the package is damaged, the board takes no updates (see `prepare`), or something else starts.
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
    """Go back to the app before the last update, by otadata's sequence and state; no app is erased.

    The entry of the running app is marked as invalid, which is what ``esp_ota_mark_app_invalid_rollback`` does, where
    the bootloader then finds the other entry or the factory app; else an entry for the other app is written.

    Args:
        start: reset the board, and see that the bootloader starts that app.

    Raises:
        OperationError: if there is no other app to go back to, the board takes no updates, or something else starts.
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


# -- what is there


class _State:
    """The slots of a board, what is in them, and what otadata says.

    Attributes:
        apps: what the apps say of themselves, by partition; None for an image that says nothing.
        running: what starts now: the first partition with an app, in the bootloader's order.
        target: the slot for the next update: the one after the running one.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        with reach(link, "auto", "looking at the slots") as access:
            self.chip = access.chip
        if self.chip == "esp8266":
            raise OperationError("the ESP8266 has no otadata", hint="its updates are not of this kind")
        _refuse_encrypted(link)
        self.table = tables.read(link).partitions
        self.otadata: OtaData = tables.otadata(link)
        self.slots = ota_slots(self.table)
        first = default_app(self.table)
        self.factory = first if first is not None and first not in self.slots else None
        if len(self.slots) + bool(self.factory) < 2:
            raise OperationError(
                f"the only partition for an app is {self.slots[0].name}: an update would overwrite what runs",
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
        """Return the partitions as the bootloader tries them; *passed_over* is an entry that does not count."""
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
        """Whether it has something in it, but no entry that counts."""
        place = self.otadata.partition
        return self._newest() is None and any(
            reading.read(self._link, entry.address, OtaDataSelectEntry.SIZE).data.strip(b"\xff")
            for entry in self.otadata.entries
            if place.offset <= entry.address
        )

    # -- changes

    def name(self, slot: Partition, state: OtaImageState = OtaImageState.UNDEFINED) -> int:
        """Make otadata name *slot*, in the entry that does not count now; return its sequence number."""
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
        """Make otadata name the app before the running one; return its partition and sequence number."""
        newest = self._newest()
        if newest is None or self.running is None or newest.slot != self.running.name:
            raise OperationError(
                "there is nothing to go back from: otadata names no app that runs",
                hint="the board starts what it would start without any update",
            )
        then = next((part for part in self._order(newest) if part.name in self.apps), None)
        if then is not None and then != self.running:
            self._write(newest.address, OtaDataSelectEntry(newest.sequence or 0, OtaImageState.INVALID))
            other = self._newest(newest)
            return then, other.sequence if other else None
        others = [part for part in self.slots if part.name in self.apps and part != self.running]
        if not others:
            raise OperationError(
                f"there is no app but that in {self.running.name} to go back to",
                hint="deploy the update that is wanted instead",
            )
        return others[-1], self.name(others[-1], OtaImageState.VALID)

    def _write(self, address: int, entry: OtaDataSelectEntry) -> None:
        writing.write(self._link, entry.to_bytes(), address, skip_unchanged=False)


def _refuse_encrypted(link: Link) -> None:
    if link.board.direct_flash() is None and posture.posture(link).flash_encryption:
        raise RefusedError(
            "flash is encrypted: what is written from outside would not start",
            hint="update it over HTTP, by its own app",
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
            f"the update has {manifest.size:#x} bytes, but {state.target.name} only {state.target.size:#x}",
            hint="nothing was written; the partition table limits the size of an app",
        )


def _check_secure_version(link: Link, image: bytes, chip: str) -> None:
    """Refuse what a bootloader with anti-rollback would not start (``CONFIG_BOOTLOADER_APP_ANTI_ROLLBACK``).

    An ESP32 has its version in the block of the user's own data (BLOCK3), where bits may mean anything: left out.
    """
    details = report(image, "the update", 0, chip).app_details
    if details is None or chip == "esp32":
        return
    wanted = (efuse.read(link, "SECURE_VERSION").bits or "").count("1")
    if details.secure_version < wanted:
        raise FirmwareError(
            f"the update has the secure version {details.secure_version}, but the eFuses of this chip want {wanted}",
            hint="nothing was written; a bootloader with anti-rollback does not start it. Build it with a higher "
            "CONFIG_BOOTLOADER_APP_SECURE_VERSION",
        )


# -- the proof


def _start(link: Link, slot: Partition) -> tuple[bool | None, str]:
    """Let the board start; return whether its bootloader said that it starts *slot* (None: it says nothing).

    Raises:
        OperationError: if it starts something else, or nothing.
    """
    console = link.boot()
    try:
        match = console.expect([_LOADED, _HOPELESS], timeout=_BOOT_TIMEOUT)
        if match.index == 0:
            console.listen(_SETTLING)  # an app that crashes at once has not started
    except CrashError as error:
        raise OperationError(
            f"the board crashes where it should start {slot.name}: {error.crash.describe()}",
            hint="go back to the app before",
        ) from error
    except ConsoleError:
        return None, console.text
    found = match.group(1) if match.index == 0 else None
    offset = int(found, 16) if found is not None else None
    if offset != slot.offset:
        what = f"the app at {offset:#x}" if offset is not None else "nothing"
        raise OperationError(
            f"the board starts {what} instead of {slot.name} at {slot.offset:#x}",
            hint="the bootloader does not accept the image: is it signed as secure boot wants, and for this revision?",
            details={"output": hide(console.text)[-2000:]},
        )
    return True, console.text
