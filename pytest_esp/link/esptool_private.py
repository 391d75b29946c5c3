"""What the link and the operations use of esptool and espefuse that is not in their documented API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esptool.loader import ESPLoader
from esptool.reset import ResetStrategy

from pytest_esp.versions import required

_PACKAGE = "esptool"


def port_of(loader: ESPLoader) -> Any:
    """Return the pyserial port of esptool's *loader*.

    Raises:
        VersionError: like all functions here, if the installed esptool has changed.
    """
    return required(loader, "_port", _PACKAGE)


def finish_connecting(loader: ESPLoader) -> None:
    """Do the rest of `ESPLoader.connect`, for a chip that has answered."""
    required(loader, "_post_connect", _PACKAGE)()


def try_to_connect(loader: ESPLoader, reset: Any | None) -> Exception | None:
    """Try once to reset the chip and get an answer from it, as each attempt of `ESPLoader.connect` does.

    Args:
        loader: of the chip.
        reset: one of ``esptool.reset``; None for no reset.

    Returns:
        None if the chip answered, else esptool's error, with what the boot log says about the mode.
    """
    return required(loader, "_connect_attempt", _PACKAGE)(reset, "default-reset" if reset else "no-reset")


def warn_by(warn: Callable[[str], object]) -> None:
    """Let *warn* print the one warning that esptool bound to its own logger when it was imported."""
    if hasattr(ResetStrategy, "print_once"):  # else it uses the logger that is set
        ResetStrategy.print_once = staticmethod(warn)  # pyright: ignore[reportAttributeAccessIssue]


def bind(commands: Any, loader: ESPLoader) -> None:
    """Let espefuse's *commands* talk to the chip over *loader*."""
    required(commands.efuses, "_esp", _PACKAGE)
    commands.esp = commands.efuses._esp = loader


def replace_burn_hooks(
    commands: Any,
    *,
    permitted: Callable[[Callable[[], bool]], bool],
    set_up: Callable[[Callable[[], None]], None],
    reconnect: Any,
) -> None:
    """Replace what espefuse's *commands* call for a burn, before it, and after one that closed the connection.

    Args:
        commands: of espefuse.
        permitted: takes what burns all that is staged, and returns its result.
        set_up: takes what espefuse itself would call, which sets the timing of the burn.
        reconnect: takes the loader that the burn used, and returns a new one.
    """
    efuses = commands.efuses
    stock = required(efuses, "efuse_controller_setup", _PACKAGE)
    burn_all = required(efuses, "burn_all", _PACKAGE)
    required(efuses, "reconnect_chip", _PACKAGE)

    def burn_staged(check_batch_mode: bool = False) -> bool:
        if check_batch_mode and required(efuses, "batch_mode_cnt", _PACKAGE):
            return burn_all(check_batch_mode)  # it burns nothing yet
        return permitted(burn_all)

    efuses.burn_all = burn_staged
    efuses.efuse_controller_setup = lambda: set_up(stock)
    efuses.reconnect_chip = reconnect
