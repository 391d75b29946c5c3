"""A board's entry in boards.toml, validated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pytest_esp.errors import BackendError
from pytest_esp.formats.mac import parse_mac
from pytest_esp.rack.chips import AUTO
from pytest_esp.rack.identity import check_port
from pytest_esp.units import parse_revision, parse_size

VIRTUAL_FLASH_SIZE = 4 * 1024 * 1024
"""The default flash size of virtual boards, in bytes."""
BACKENDS = ("serial", "qemu", "sim", "labgrid")
VIRTUAL_BACKENDS = ("qemu", "sim")

ASKED_BACKENDS = ("serial", "labgrid")
"""The backends whose boards can be asked for what their entries do not give."""

Effect = Literal["read", "write", "erase", "burn"]
ResetBefore = Literal["default-reset", "usb-reset", "no-reset", "no-reset-no-sync"]
"""How the chip is brought into its loader; the words and meanings are those of esptool's ``--before``."""
ResetAfter = Literal["hard-reset", "watchdog-reset", "no-reset"]
"""How the app is started again when a board is given back; the words are those of esptool's ``--after``."""


def _size(value: Any) -> int:
    size = parse_size(value)
    if size == 0:
        raise ValueError("must be greater than 0")
    return size


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in cast(list[Any], value)):
        raise ValueError('expected a list of names, e.g. ["one", "other"]')
    return cast(list[str], value)


def _mac(value: Any) -> str:
    try:
        return parse_mac(str(value)).hex(":")
    except BackendError as error:
        raise ValueError(f"{error.message}: {error.hint}") from None


def _revision(value: Any) -> Any:
    return parse_revision(value) if isinstance(value, str) else value


Size = Annotated[int, BeforeValidator(_size)]
Mac = Annotated[str, BeforeValidator(_mac)]
Names = BeforeValidator(_names)

_KEYS_OF = {
    "port": ("serial",),
    "console_baud": ("serial", "labgrid", "sim"),
    "console_port": ("serial",),
    "before": ("serial", "labgrid"),
    "after": ("serial", "labgrid"),
    "power": ("serial", "labgrid"),
    "allow_burn": ("serial", "labgrid"),
    "count": (*VIRTUAL_BACKENDS, "labgrid"),
    "flash_file": VIRTUAL_BACKENDS,
    "efuse_file": VIRTUAL_BACKENDS,
    "rollback": ("sim",),
    "secure_download": ("sim",),
    "faults": ("serial", "labgrid", *VIRTUAL_BACKENDS),
    "app": ("sim",),
    "coordinator": ("labgrid",),
    "place": ("labgrid",),
    "tags": ("labgrid",),
}
"""Keys that only some backends accept. A backend from an entry point may use all of them, and `options`."""


class Power(BaseModel):
    """Commands that switch a board's power supply."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    off: str = Field(min_length=1)
    on: str = Field(min_length=1)


class PowerMeterSpec(BaseModel):
    """A meter of a board's supply current.

    Attributes:
        driver: "ppk2", "sim", or a driver from another package.
        port: the meter's port.
        mode: "ampere" measures in the supply line; "source" also supplies the board.
        voltage_mv: the board's supply voltage, in millivolts.
        options: for drivers of other packages, and for "sim".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    driver: str = Field(min_length=1)
    port: str | None = None
    mode: Literal["ampere", "source"] = "ampere"
    voltage_mv: int = Field(default=3300, ge=800, le=5000, strict=True)
    options: dict[str, Any] = {}


Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class WireFaultSpec(BaseModel):
    """Faults of one direction of the wire; see `wire.faults.Fault`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lose: Probability = 0.0
    corrupt: Probability = 0.0
    double: Probability = 0.0
    cut: Probability = 0.0
    silent_after: int | None = Field(default=None, ge=0, strict=True)
    latency: float = Field(default=0.0, ge=0.0, le=60.0)
    seed: int = Field(default=0, strict=True)


class FaultSpec(BaseModel):
    """Faults of a board from its start; see `wire.faults.Faults` and `boards.faults.BoardFaults`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to_device: WireFaultSpec | None = None
    to_host: WireFaultSpec | None = None
    vanish_after: int | None = Field(default=None, ge=0, strict=True)
    vanish_seconds: float | None = Field(default=None, ge=0.0)
    reset_after: int | None = Field(default=None, ge=0, strict=True)
    reset_cause: Literal["reset", "brownout"] | None = None
    boot_loop: float | None = Field(default=None, gt=0.0)
    secure_download: bool | None = None
    stuck: dict[Annotated[str, Field(pattern=r"^(0[xX][0-9a-fA-F]+|[0-9]+)$")], int] | None = None
    wrong_chip: str | None = None


class BoardSpec(BaseModel):
    """A board's entry in boards.toml. Sizes are in bytes, paths are absolute.

    What the entry of a real board does not give of `chip`, `flash_size`, `revision` and `crystal` is asked of the chip
    under a lease; see `rack.facts`.

    Attributes:
        name: of the board, from the table's name.
        backend: how the board is reached: `serial`, `qemu`, `sim`, `labgrid`, or a backend of another package.
        chip: as esptool names it: `esp32`, `esp32c3`, ... If it is left out, the chip is asked; for labgrid, the tag
            `chip` is used if there is one.
        port: a device path, `usb:VID:PID:serial=...`, `COM7`, `rfc2217://host:port` or `socket://host:port`.
        console_port: a second port on which the app prints, as boards with two USB sockets have. Both ports are the
            board: one lease holds them, and what `allow` says counts for both.
        console_baud: the baud rate of the app's console. The boot log of the ROM is read at its own rate: 74880 on an
            ESP8266 and an ESP32-C2 with a crystal of 26 MHz.
        before: how RTS and DTR put the chip into its loader, in esptool's words.
        after: how the app is restarted when the board is released, in esptool's words; `"no-reset"` leaves the chip in
            its loader.
        baud: the highest baud rate for flash operations.
        flash_size: e.g. `"4MB"`; tests can require it, as in `flash=">=4MB"`.
        features: words of your own that tests can require.
        allow: what may be done to the board: any of `read`, `write`, `erase`, `burn`.
        allow_burn: the eFuses that may be burnt, by name, if `allow` has `burn` and the run has `--esp-allow-burn`.
        power: `{ off = "command", on = "command" }`: commands that switch the board's power.
        power_meter: `{ driver = "ppk2", port = "/dev/serial/by-id/..." }`: the meter of the board's supply current,
            see below.
        count: the number of such boards, named `name-1`, `name-2`, ...; for labgrid boards by `tags` only.
        flash_file: the file that keeps the flash, relative to `boards.toml`; without it the flash is kept in your
            user's state folder.
        efuse_file: the file that keeps the eFuses, relative to `boards.toml`; without it every lease begins with
            blank eFuses.
        mac: the chip's MAC address. A real board with another one is refused; a virtual board gets it.
        revision: the chip's revision: `"v3.1"`, or `301`; tests can require it, as in `revision=">=3"`.
        crystal: the frequency of the chip's crystal in MHz; tests can require it, as in `crystal=40`.
        rollback: whether the chip's bootloader was built with app rollback, which ESP-IDF's default is not.
        secure_download: whether the chip is in secure download mode.
        app: the app that runs, as `"module:Class"`.
        coordinator: `"host:port"` of the lab's coordinator; port 20408 if left out.
        place: the place in the lab, see below.
        tags: instead of `place`: any free place with these tags.
        faults: faults that are active from the board's start ([guide](guide.md#faults)); on a real board this puts a
            proxy in front of the port.
        options: a table for backends of other packages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    backend: str
    chip: str = AUTO
    port: str | None = None
    console_port: str | None = None
    console_baud: int | None = Field(default=None, ge=300, le=20_000_000, strict=True)
    before: ResetBefore = "default-reset"
    after: ResetAfter = "hard-reset"
    baud: int = Field(default=460800, ge=300, le=20_000_000, strict=True)
    flash_size: Size | None = None
    features: Annotated[frozenset[str], Names] = frozenset()
    allow: Annotated[frozenset[Effect], Names] = frozenset()
    allow_burn: Annotated[tuple[str, ...], Names] = ()
    power: Power | None = None
    power_meter: PowerMeterSpec | None = None
    count: int = Field(default=1, ge=1, le=1000, strict=True)
    flash_file: Path | None = None
    efuse_file: Path | None = None
    mac: Mac | None = None
    revision: Annotated[int | None, BeforeValidator(_revision)] = Field(default=None, ge=0, le=9999, strict=True)
    crystal: int | None = Field(default=None, ge=1, le=200, strict=True)
    rollback: bool = Field(default=False, strict=True)
    secure_download: bool = Field(default=False, strict=True)
    app: str | None = Field(default=None, pattern=r"^(\w+|[\w.]+:\w+)$")
    coordinator: str | None = None
    place: str | None = None
    tags: dict[str, str] | None = None
    faults: FaultSpec | None = None
    options: dict[str, Any] | None = None

    @property
    def virtual(self) -> bool:
        """Whether the board is a simulation or emulation, which cannot be damaged."""
        return self.backend in VIRTUAL_BACKENDS

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: dict[str, Any]) -> dict[str, Any]:
        everything = ["read", "write", "erase", "burn"]
        if data.get("backend") in VIRTUAL_BACKENDS:
            return {"allow": everything, "baud": 921600, "flash_size": VIRTUAL_FLASH_SIZE, **data}
        if data.get("backend") == "labgrid":
            tags = data.get("tags")
            chip = cast(dict[str, Any], tags).get("chip") if isinstance(tags, dict) else None
            return {"allow": everything[:3], "chip": chip or AUTO, **data}
        return {"allow": everything[:3], **data}

    @model_validator(mode="after")
    def _check_backend_keys(self) -> BoardSpec:
        for _, message in misfits({key: getattr(self, key) for key in self.model_fields_set}):
            raise ValueError(message)
        return self


def backends_of(key: str) -> tuple[str, ...]:
    """Return the built-in backends whose boards can have *key* in their entries; none: other packages' only."""
    return () if key == "options" else _KEYS_OF.get(key, BACKENDS)


def misfits(entry: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """Yield conflicts in a board's *entry*: the key (None if one is missing) and a message."""
    backend = entry.get("backend")
    if backend in BACKENDS:
        for key in entry.keys() & _KEYS_OF.keys():
            if backend not in _KEYS_OF[key]:
                yield key, f"`{key}` is for {' and '.join(_KEYS_OF[key])} boards, not for backend {backend!r}"
    if backend == "serial" and not entry.get("port"):
        yield ("port" if "port" in entry else None), 'a serial board needs its `port`, e.g. "/dev/ttyUSB0"'
    if backend == "labgrid" and not (entry.get("coordinator") and (entry.get("place") or entry.get("tags"))):
        yield None, "a labgrid board needs its `coordinator`, and `place` or `tags`"
    if backend == "labgrid" and entry.get("place") and entry.get("tags"):
        yield "tags", "a labgrid board needs either `place` or `tags`, not both"
    if backend == "labgrid" and entry.get("place") and entry.get("count", 1) != 1:
        yield "count", "`place` selects one board; use `tags` for several"
    for key in ("port", "console_port"):
        if isinstance(port := entry.get(key), str):
            try:
                check_port(port)
            except ValueError as error:
                yield key, f"`{key}`: {port!r} is not a valid port: {error}"
    if entry.get("console_port") and entry.get("console_port") == entry.get("port"):
        yield "console_port", "`console_port` is the same as `port`; leave it out"
    allow = entry.get("allow") or ()
    if entry.get("allow_burn") and isinstance(allow, Collection) and "burn" not in allow:
        yield "allow_burn", '`allow_burn` names eFuses, but `allow` has no "burn"'
