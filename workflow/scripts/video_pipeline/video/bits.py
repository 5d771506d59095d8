"""Reads the headers of a video stream bit by bit."""

from __future__ import annotations

from typing import Self


class Bits:
    """The bits of some bytes, in order. Raises :class:`IndexError` if they end too early."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    @classmethod
    def of_unit(cls, unit: bytes) -> Self:
        """The bits of a NAL unit of H.264, without its emulation prevention bytes (7.4.1)."""
        return cls(unit.replace(b"\0\0\3", b"\0\0"))

    def take(self, count: int) -> int:
        """The next ``count`` bits as a number."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        return self._value >> self._left & (1 << count) - 1

    def exp_golomb(self) -> int:
        """The next Exp-Golomb code: ue(v) of H.264 (9.1), uvlc() of AV1 (4.10.3)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def skip_scaling_list(self, size: int) -> None:
        """Skip a scaling list of ``size`` numbers of H.264 (7.3.2.1.1.1)."""
        last = following = 8
        for _ in range(size):
            if following:
                code = self.exp_golomb()
                delta = (code + 1) // 2 if code % 2 else -(code // 2)
                following = (last + delta) % 256
            last = following or last
