"""Names of other packages that may change with any version, and the error for one that has changed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pytest_esp.errors import EspError

_DISTRIBUTION = "pytest-esp"


class VersionError(EspError):
    """The installed version of a package lacks a name that pytest-esp uses."""


def required(owner: object, name: str, package: str) -> Any:
    """Return the attribute *name* of *owner*, which *package* does not document.

    Args:
        owner: a module, a class or an object.
        name: of the attribute.
        package: the distribution that *owner* comes from, e.g. ``"pytest-xdist"``.

    Raises:
        VersionError: if the installed version has no attribute of that name.
    """
    try:
        return getattr(owner, name)
    except AttributeError:
        where = getattr(owner, "__name__", None) or type(owner).__name__
        raise _broken(package, f"{where}.{name}") from None


def required_module(name: str, package: str) -> Any:
    """Return the module *name*, which *package* does not document.

    Raises:
        VersionError: if the installed version has no module of that name.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise _broken(package, name) from error


def _broken(package: str, name: str) -> VersionError:
    from importlib import metadata

    from packaging.requirements import Requirement

    known = [Requirement(text) for text in metadata.requires(_DISTRIBUTION) or ()]
    known = [f"{one.name}{one.specifier}" for one in known if one.name == package]
    return VersionError(
        f"{package} {metadata.version(package)} broke {name}",
        hint=f"pip install '{known[0] if known else package}'; if that does not help, use an older {package}",
    )
