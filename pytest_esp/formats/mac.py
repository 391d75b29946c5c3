"""MAC addresses."""

from __future__ import annotations

import hashlib
import re

from pytest_esp.errors import BackendError

_MAC = re.compile(r"([0-9a-fA-F]{2})[:.-]?" * 5 + r"([0-9a-fA-F]{2})")


def parse_mac(text: str) -> bytes:
    """Return the six bytes of a MAC address, which is given in hex, with or without colons, hyphens or dots.

    Raises:
        BackendError: if it is invalid, or a multicast address.
    """
    match = _MAC.fullmatch(text.strip())
    if match is None:
        raise BackendError(f"invalid MAC address {text!r}", hint="expected six bytes in hex, e.g. 7C:DF:A1:00:00:01")
    mac = bytes(int(part, 16) for part in match.groups())
    if mac[0] & 1:
        raise BackendError(f"{text} is a multicast address", hint="bit 0 of the first byte must be 0")
    return mac


def made_up_mac(name: str) -> bytes:
    """Return an address in one of Espressif's blocks, with a lower half derived from *name*."""
    return bytes.fromhex("7cdfa1") + hashlib.sha256(name.encode()).digest()[:3]
