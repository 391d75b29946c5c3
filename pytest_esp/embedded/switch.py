"""The switch: a plugin that does nothing but add an option, until a run sets it.

pytest imports this module in every run once the package is installed.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

_PEER = "pytest_embedded"
_IS_ON = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and its ini equivalent."""
    parser.getgroup("esp").addoption(
        "--esp-embedded",
        action="store_true",
        default=None,
        help="provide pytest-embedded's fixtures (dut, app, ...) and options on the boards of the rack",
    )
    parser.addini("esp_embedded", "like --esp-embedded", type="bool", default=False)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser) -> Generator[None]:
    """Switch the fixtures on: before conftest files import pytest-embedded, and before options are parsed."""
    early_config.stash[_IS_ON] = is_on = _wanted(early_config)
    if not is_on:
        yield
        return
    from pytest_esp.embedded import modules
    from pytest_esp.embedded.options import add_options

    _remove_peer(early_config.pluginmanager)
    modules.install()
    early_config.add_cleanup(modules.remove)
    yield
    add_options(parser)  # after the conftest files, which may have options of the same names


def _wanted(config: pytest.Config) -> bool:
    given = getattr(config.known_args_namespace, "esp_embedded", None)
    return bool(config.getini("esp_embedded")) if given is None else bool(given)


def _remove_peer(manager: pytest.PytestPluginManager) -> None:
    """Unregister an installed pytest-embedded, whose fixtures and hooks have the same names."""
    from pytest_esp.plugin.pytest_private import forget_plugin

    for name, plugin in manager.list_name_plugin():
        if plugin is not None and str(getattr(plugin, "__name__", "")).partition(".")[0] == _PEER:
            manager.unregister(plugin, name)
            forget_plugin(manager, plugin)


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures: later than those of any entry point, so that they win."""
    if config.stash.get(_IS_ON, False):
        from pytest_esp.embedded import fixtures, planning

        _register(config, fixtures, planning)


def _register(config: pytest.Config, *plugins: Any) -> None:
    for plugin in plugins:
        config.pluginmanager.register(plugin, plugin.__name__)
