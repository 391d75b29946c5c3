"""What can go wrong on a wire, switched on for a test: lost, doubled and corrupted bytes, and silence."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to the bytes of one direction. Probabilities are per byte, from 0 to 1.

    Attributes:
        lose, corrupt, double: probabilities.
        silent_after: after so many bytes no more come through; None for never.
        seed: the same seed brings the same faults.
        passed: bytes that have come through so far.
    """

    lose: float = 0.0
    corrupt: float = 0.0
    double: float = 0.0
    silent_after: int | None = None
    seed: int = 0
    passed: int = 0
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def apply(self, data: bytes) -> bytes:
        """Return what comes out for *data*."""
        if self.lose or self.corrupt or self.double:
            data = b"".join(self._spoil(byte) for byte in data)
        if self.silent_after is not None:
            data = data[: max(0, self.silent_after - self.passed)]
        self.passed += len(data)
        return data

    def _spoil(self, byte: int) -> bytes:
        chance = self._random.random()
        if chance < self.lose:
            return b""
        if chance < self.lose + self.corrupt:
            return bytes([byte ^ (1 << self._random.randrange(8))])
        if chance < self.lose + self.corrupt + self.double:
            return bytes([byte, byte])
        return bytes([byte])


@dataclass
class Faults:
    """The faults of a wire, by direction."""

    to_device: Fault = field(default_factory=Fault)
    to_host: Fault = field(default_factory=Fault)
