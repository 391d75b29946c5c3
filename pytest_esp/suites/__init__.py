"""Test suites that users run on their own racks: ``pytest --pyargs pytest_esp.suites``, or ``pytest-esp check``.

Every test runs once per board. Tests that write flash use a scratch region: the last 128 KB of the flash. On real
boards they restore its contents. They are marked ``erases``: ``-m "not erases"`` deselects them.
"""
