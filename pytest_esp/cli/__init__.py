"""The pytest-esp command."""
