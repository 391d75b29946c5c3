"""``rfc2217://`` for `serial.serial_for_url`."""

from pytest_esp.wire.rfc2217 import Serial

__all__ = ["Serial"]
