"""pytest-esp: hardware-in-the-loop testing of Espressif chips.

Rooms, from the outside in: ``plugin``, ``cli`` and ``suites`` call ``operations``, which use a ``link`` to a
board of ``boards``; ``rack`` knows which boards there are and who holds them; ``sim`` makes simulated chips;
``wire`` carries bytes and control lines. Imports go downward only.
"""

__version__ = "0.1.0"
