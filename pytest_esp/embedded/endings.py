"""What ``import pexpect`` gives to scripts if pexpect is not installed: the two ends of a wait."""

from __future__ import annotations


class ExceptionPexpect(Exception):  # noqa: N818 - pexpect's name
    """Base of both."""


class TIMEOUT(ExceptionPexpect):
    """Nothing matched in time."""


class EOF(ExceptionPexpect):
    """The board is gone."""
