"""How a chip is locked: its security info, and the posture that follows from its eFuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_esp.errors import OperationError
from pytest_esp.link.link import Link
from pytest_esp.operations.efuse import read_all
from pytest_esp.operations.registry import Effect, operation


@dataclass(frozen=True)
class SecurityInfo:
    """The ROM's answer to GET_SECURITY_INFO (``ESPLoader.get_security_info``).

    Attributes:
        flags: the flag word.
        flag_names: names of the flags that are set.
        flash_crypt_count: the flash encryption counter; an odd number of bits means encrypted.
        key_purposes: of the key blocks, by name.
        chip_id, api_version: None on the ESP32-S2, which does not tell them.
    """

    flags: int
    flag_names: tuple[str, ...]
    flash_crypt_count: int
    key_purposes: tuple[str, ...]
    chip_id: int | None
    api_version: int | None


@operation(Effect.READ)
def info(link: Link) -> SecurityInfo:
    """Return the chip's security info.

    Raises:
        OperationError: on an ESP8266 or ESP32, whose ROM has no such command (`posture` works on the ESP32).
    """
    with link.session.use("security info", stub=False) as esp:
        if not esp.SECURITY_INFO_SUPPORTED:
            raise OperationError(
                f"the ROM of the {esp.CHIP_NAME} has no security info",
                hint="its eFuses tell: see security posture",
            )
        raw = esp.get_security_info(cache=False)
        return SecurityInfo(
            flags=raw["flags"],
            flag_names=tuple(name for name, is_set in raw["parsed_flags"].items() if is_set),
            flash_crypt_count=raw["flash_crypt_cnt"],
            key_purposes=tuple(esp.KEY_PURPOSES.get(number, str(number)) for number in raw["key_purposes"]),
            chip_id=raw["chip_id"],
            api_version=raw["api_version"],
        )


@dataclass(frozen=True)
class SecurityPosture:
    """What an attacker with the board in hand meets.

    Attributes:
        flash_encryption: whether flash contents are encrypted.
        secure_boot: whether only signed images start.
        jtag: whether a debugger can attach by any way that no eFuse closes.
        download_mode: ``"enabled"``, ``"secure"`` or ``"disabled"``.
        fuses: the eFuses that this was read from.
    """

    flash_encryption: bool
    secure_boot: bool
    jtag: bool
    download_mode: str
    fuses: Mapping[str, str]


# The eFuses that decide, whatever the chip calls them (espefuse's definitions of all chips).
_CRYPT_COUNTERS = ("FLASH_CRYPT_CNT", "SPI_BOOT_CRYPT_CNT")
_SECURE_BOOT = ("ABS_DONE_0", "ABS_DONE_1", "SECURE_BOOT_EN")
_PAD_JTAG_OFF = ("JTAG_DISABLE", "HARD_DIS_JTAG", "DIS_PAD_JTAG")
_SOFT_JTAG_OFF = "SOFT_DIS_JTAG"
_USB_JTAG_OFF = ("DIS_USB_JTAG", "DIS_USB_SERIAL_JTAG")
_DOWNLOAD_OFF = ("UART_DOWNLOAD_DIS", "DIS_DOWNLOAD_MODE")
_DOWNLOAD_SECURE = ("ENABLE_SECURITY_DOWNLOAD",)


@operation(Effect.READ)
def posture(link: Link) -> SecurityPosture:
    """Return how the chip is locked, read from its eFuses.

    Raises:
        LinkError: if the eFuses cannot be read: an unreachable board has no clean bill.
        OperationError: on an ESP8266, which has none.
    """
    fuses = read_all(link).fields
    bits = {name: int(field.bits, 2) for name, field in fuses.items() if field.bits is not None}

    def burnt(names: tuple[str, ...]) -> bool:
        return any(bits.get(name, 0) for name in names)

    # A soft disable counts bits: an odd number disables (HMAC may enable it again), as the ROM reads it.
    pads_closed = burnt(_PAD_JTAG_OFF) or bool(bits.get(_SOFT_JTAG_OFF, 0).bit_count() & 1)
    usb_open = any(name in fuses for name in _USB_JTAG_OFF) and not burnt(_USB_JTAG_OFF)
    decisive = (
        *_CRYPT_COUNTERS,
        *_SECURE_BOOT,
        *_PAD_JTAG_OFF,
        _SOFT_JTAG_OFF,
        *_USB_JTAG_OFF,
        *_DOWNLOAD_OFF,
    )
    return SecurityPosture(
        flash_encryption=any(bits.get(name, 0).bit_count() & 1 for name in _CRYPT_COUNTERS),
        secure_boot=burnt(_SECURE_BOOT),
        jtag=not pads_closed or usb_open,
        download_mode="disabled" if burnt(_DOWNLOAD_OFF) else "secure" if burnt(_DOWNLOAD_SECURE) else "enabled",
        fuses={name: str(fuses[name].value) for name in (*decisive, *_DOWNLOAD_SECURE) if name in fuses},
    )
