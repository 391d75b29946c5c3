"""What a chip reports beyond its identity: eFuse blocks, package, USB, security."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations.chip.identity import ChipIdentity, identify
from pytest_esp.operations.registry import Effect, operation
from pytest_esp.operations.security.efuse import read_all
from pytest_esp.operations.security.posture import posture


@dataclass(frozen=True)
class ChipInfo(ChipIdentity):
    """All that a chip reports. None if this chip does not report it.

    Attributes:
        package_version: number of the package in the eFuses.
        efuse_block_version: version of layout and calibration data of the eFuse blocks, e.g. ``"v1.3"``.
        usb_mode: ``"USB-Serial/JTAG"`` or ``"USB-OTG"`` if the port is the chip's own (by USB ids); None for a UART.
        security_flags: the flags of the ROM's security info that are set.
        flash_encryption: whether the chip encrypts its flash.
        secure_boot: ``"v1"``, ``"v2"`` or ``"disabled"``.
    """

    package_version: int | None
    efuse_block_version: str | None
    usb_mode: str | None
    security_flags: tuple[str, ...] | None
    flash_encryption: bool | None
    secure_boot: str | None


@operation(Effect.READ, group="chip")
def info(link: Link) -> ChipInfo:
    """Return all that the chip reports: identity, package, eFuse blocks, USB, security.

    Source: the getters of esptool's target classes, GET_SECURITY_INFO, and the eFuses as espefuse reads them.

    Raises:
        LinkError: if the chip does not answer. WrongChipError: if it is not the chip in boards.toml.
    """
    who = identify(link)
    with link.session.use("chip info", stub=False) as esp:
        package = None if who.secure_download_mode else _package(esp)
        usb = esp.get_usb_mode()
        flags = _flags(esp)
    security = None if who.chip_type == "esp8266" else posture(link)
    return ChipInfo(
        **vars(who),
        package_version=package,
        efuse_block_version=None if who.secure_download_mode else _block_version(link),
        usb_mode=usb,
        security_flags=flags,
        flash_encryption=security.flash_encryption if security else None,
        secure_boot=(security.secure_boot_version or "disabled") if security else None,
    )


def _package(esp: Any) -> int | None:
    getter = getattr(esp, "get_pkg_version", None)
    return int(getter()) if getter else None


def _flags(esp: Any) -> tuple[str, ...] | None:
    if not esp.SECURITY_INFO_SUPPORTED:
        return None
    flags = esp.get_security_info(cache=False)["parsed_flags"]
    return tuple(name for name, is_set in flags.items() if is_set)


def _block_version(link: Link) -> str | None:
    try:
        fields = read_all(link).fields
    except OperationError:  # an ESP8266: espefuse has no definitions for it
        return None
    if "BLK_VERSION_MAJOR" not in fields or "BLK_VERSION_MINOR" not in fields:
        return None
    major, minor = (int(fields[name].bits or "0", 2) for name in ("BLK_VERSION_MAJOR", "BLK_VERSION_MINOR"))
    return f"v{major}.{minor}"
