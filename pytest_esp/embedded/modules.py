"""Modules of pytest-embedded's names, for scripts that import from it where it is not installed.

They exist from `install` to `remove`. Installed packages of these names win.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_HOME = "pytest_esp.embedded"

_DUT = {"Dut": "duts", "IdfDut": "duts", "SerialDut": "duts", "QemuDut": "duts", "LinuxDut": "duts"}
_CASES = {"CaseTester": "cases", "UnittestMenuCase": "cases", "READY_PATTERN_LIST": "cases"}
_APP = {"App": "app", "IdfApp": "app", "QemuApp": "app", "FlashFile": "app"}
_SERIAL = {"Serial": "serial", "EspSerial": "serial", "IdfSerial": "serial", "LinuxSerial": "serial"}
_TARGETS = {"idf_parametrize", "soc_filtered_targets", "supported_targets", "preview_targets"}
_TEXT = {"to_str", "to_bytes", "to_list", "remove_asci_color_code"}
_SEVERAL = {"multi_dut_argument", "multi_dut_fixture", "parse_multi_dut_args"}
_ENDINGS = {"TIMEOUT": "endings", "EOF": "endings", "ExceptionPexpect": "endings"}

NAMES: Mapping[str, Mapping[str, str]] = {
    "pexpect": _ENDINGS,
    "pexpect.exceptions": _ENDINGS,
    "pytest_embedded": {**_DUT, **_APP},
    "pytest_embedded.app": _APP,
    "pytest_embedded.dut": _DUT,
    "pytest_embedded.plugin": {
        **dict.fromkeys(_SEVERAL, "parameters"),
        "_request_param_or_config_option_or_default": "parameters",
    },
    "pytest_embedded.unity": {"TestCase": "cases", "TestSuite": "cases"},
    "pytest_embedded.utils": dict.fromkeys(_TEXT, "texts"),
    "pytest_embedded_idf": {**_DUT, **_APP, **_SERIAL, **_CASES},
    "pytest_embedded_idf.app": _APP,
    "pytest_embedded_idf.dut": {**_DUT, **_CASES},
    "pytest_embedded_idf.serial": _SERIAL,
    "pytest_embedded_idf.unity_tester": _CASES,
    "pytest_embedded_idf.utils": dict.fromkeys(_TARGETS, "targets"),
    "pytest_embedded_qemu": {**_DUT, **_APP},
    "pytest_embedded_qemu.app": _APP,
    "pytest_embedded_qemu.dut": _DUT,
    "pytest_embedded_serial": {**_DUT, **_SERIAL},
    "pytest_embedded_serial.dut": _DUT,
    "pytest_embedded_serial.serial": _SERIAL,
    "pytest_embedded_serial_esp": _SERIAL,
    "pytest_embedded_serial_esp.serial": _SERIAL,
}
"""The names that each module has, and the module of this package that they come from."""


class _StandIn(ModuleType):
    """A module whose names are looked up when they are used."""

    def __getattr__(self, name: str) -> object:
        if (submodule := f"{self.__name__}.{name}") in NAMES:
            return importlib.import_module(submodule)
        home = NAMES[self.__name__].get(name)
        if home is None:
            hint = "" if name.startswith("__") else f"; pip install {self.__name__.partition('.')[0].replace('_', '-')}"
            raise AttributeError(f"pytest-esp's stand-in for {self.__name__} has no {name}{hint}", name=name, obj=self)
        return getattr(importlib.import_module(f"{_HOME}.{home}"), name)


class _Finder(MetaPathFinder, Loader):
    """Finds the modules that no installed package has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in NAMES:
            return None
        is_package = any(name.startswith(f"{fullname}.") for name in NAMES)
        return ModuleSpec(fullname, self, is_package=is_package)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name, f"pytest-esp's stand-in for {spec.name}.")

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the names are looked up when they are used."""


_finder = _Finder()


def install() -> None:
    """Let scripts import the modules."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def remove() -> None:
    """Remove the modules."""
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            del sys.modules[name]
