"""One board's entry in boards.toml, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pytest_esp.units import parse_size

BACKENDS = ("serial", "qemu", "sim", "labgrid")
VIRTUAL_BACKENDS = ("qemu", "sim")

Effect = Literal["read", "write", "erase", "burn"]
Size = Annotated[int, BeforeValidator(parse_size)]

_KEYS_OF = {
    "port": ("serial",),
    "power": ("serial", "labgrid"),
    "allow_burn": ("serial", "labgrid"),
    "count": VIRTUAL_BACKENDS,
    "flash_file": VIRTUAL_BACKENDS,
    "efuse_file": VIRTUAL_BACKENDS,
    "mac": VIRTUAL_BACKENDS,
    "revision": VIRTUAL_BACKENDS,
    "secure_download": ("sim",),
    "app": ("sim",),
    "coordinator": ("labgrid",),
    "place": ("labgrid",),
    "tags": ("labgrid",),
}
"""Keys that only some backends have; a backend from an entry point may use all of them, and `options`."""


class Power(BaseModel):
    """Commands that switch a board's supply."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    off: str = Field(min_length=1)
    on: str = Field(min_length=1)


class BoardSpec(BaseModel):
    """What boards.toml says of one board. Sizes are bytes, paths absolute."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    backend: str
    chip: str
    port: str | None = None
    baud: int = Field(default=460800, ge=300, le=20_000_000)
    flash_size: Size | None = None
    features: frozenset[str] = frozenset()
    allow: frozenset[Effect] = frozenset()
    allow_burn: tuple[str, ...] = ()
    power: Power | None = None
    count: int = Field(default=1, ge=1, le=1000)
    flash_file: Path | None = None
    efuse_file: Path | None = None
    mac: str | None = Field(default=None, pattern=r"^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$")
    revision: int | None = Field(default=None, ge=0, le=9999)
    secure_download: bool = False
    app: str | None = None
    coordinator: str | None = None
    place: str | None = None
    tags: dict[str, str] | None = None
    options: dict[str, Any] | None = None

    @property
    def virtual(self) -> bool:
        """Whether the board is a program, so that nothing can be broken."""
        return self.backend in VIRTUAL_BACKENDS

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, data: dict[str, Any]) -> dict[str, Any]:
        everything = ["read", "write", "erase", "burn"]
        if data.get("backend") in VIRTUAL_BACKENDS:
            return {"allow": everything, "baud": 921600, **data}
        return {"allow": everything[:3], **data}

    @model_validator(mode="after")
    def _check_backend_keys(self) -> BoardSpec:
        if self.backend not in BACKENDS:
            return self
        for key in self.model_fields_set & _KEYS_OF.keys():
            if self.backend not in _KEYS_OF[key]:
                raise ValueError(
                    f"`{key}` is for {' and '.join(_KEYS_OF[key])} boards, not for backend {self.backend!r}"
                )
        if self.backend == "serial" and not self.port:
            raise ValueError('a serial board needs its `port`, e.g. "/dev/ttyUSB0"')
        if self.backend == "labgrid" and not (self.coordinator and (self.place or self.tags)):
            raise ValueError("a labgrid board needs its `coordinator`, and `place` or `tags`")
        if self.allow_burn and "burn" not in self.allow:
            raise ValueError('`allow_burn` names eFuses, but `allow` has no "burn"')
        return self
