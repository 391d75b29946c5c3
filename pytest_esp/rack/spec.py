"""A board's entry in boards.toml, validated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pytest_esp.rack.identity import check_port
from pytest_esp.units import parse_size

VIRTUAL_FLASH_SIZE = 4 * 1024 * 1024
"""The default flash size of virtual boards, in bytes."""
BACKENDS = ("serial", "qemu", "sim", "labgrid")
VIRTUAL_BACKENDS = ("qemu", "sim")

AUTO = "auto"
"""The chip of an entry that does not give it."""
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


Size = Annotated[int, BeforeValidator(_size)]
Names = BeforeValidator(_names)

_KEYS_OF = {
    "port": ("serial",),
    "before": ("serial", "labgrid"),
    "after": ("serial", "labgrid"),
    "power": ("serial", "labgrid"),
    "allow_burn": ("serial", "labgrid"),
    "count": (*VIRTUAL_BACKENDS, "labgrid"),
    "flash_file": VIRTUAL_BACKENDS,
    "efuse_file": VIRTUAL_BACKENDS,
    "mac": VIRTUAL_BACKENDS,
    "revision": VIRTUAL_BACKENDS,
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

    The chip of a real board is "auto" if neither the entry nor, for labgrid, its tags give it: it is then asked of the
    chip under a lease.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    backend: str
    chip: str = AUTO
    port: str | None = None
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
    mac: str | None = Field(default=None, pattern=r"^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$")
    revision: int | None = Field(default=None, ge=0, le=9999, strict=True)
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
    if isinstance(port := entry.get("port"), str):
        try:
            check_port(port)
        except ValueError as error:
            yield "port", f"`port`: {port!r} is not a valid port: {error}"
    allow = entry.get("allow") or ()
    if entry.get("allow_burn") and isinstance(allow, Collection) and "burn" not in allow:
        yield "allow_burn", '`allow_burn` names eFuses, but `allow` has no "burn"'
