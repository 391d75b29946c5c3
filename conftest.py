"""What this repository's own tests need of pytest; `pytest_plugins` is allowed in the topmost conftest only."""

pytest_plugins = ["pytester"]
