"""esptool's configuration file, which esptool reads when it is imported."""

from __future__ import annotations

from pytest_esp.errors import OperationError


def check_config() -> None:
    """Check that esptool can be imported with the configuration file that it finds.

    Raises:
        OperationError: if a value in that file is invalid.
    """
    try:
        import esptool.loader as _  # noqa: F401
    except ValueError as error:
        raise OperationError(
            f"esptool's configuration file has an invalid value: {error}",
            hint="correct it in the section [esptool] of esptool.cfg, setup.cfg or tox.ini, or in ESPTOOL_CFGFILE",
        ) from error
