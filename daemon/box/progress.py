"""How far a transfer has come, for whoever follows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TransferProgress:
    """Bytes of all files: there, in total, asked for more than once; and chunks that hashed wrong there."""

    done: int
    total: int
    resent: int
    bad: int = 0


Follow = Callable[[TransferProgress], None]


def nobody(progress: TransferProgress) -> None:
    """For whom nobody follows."""


@dataclass
class Rate:
    """Of what moved since the first report: the hashing before it does not count, nor what an earlier try brought.

    Times are seconds of whatever monotonic clock the caller has.
    """

    since: float | None = field(default=None, init=False)
    last: TransferProgress | None = field(default=None, init=False)
    _there: int = field(default=0, init=False)  # bytes, at the first report

    def hear(self, progress: TransferProgress, now: float) -> None:
        if self.since is None:
            self.since, self._there = now, progress.done
        self.last = progress

    @property
    def came(self) -> int:
        """Bytes."""
        return self.last.done - self._there if self.last is not None else 0

    def took_s(self, now: float) -> float:
        return now - self.since if self.since is not None else 0.0

    def per_s(self, now: float) -> float | None:
        """Bytes; None while nothing has come."""
        took = self.took_s(now)
        return self.came / took if took > 0 and self.came > 0 else None


class Tally:
    """Adds up one transfer of `total` bytes, block by block, and tells after each."""

    def __init__(self, follow: Follow, total: int) -> None:
        self._follow = follow
        self._total = total
        self._left = total
        self._resent = 0

    def begin(self, left: int) -> None:
        """So many bytes are to come now; what came before and is among them is sent again."""
        self._resent += max(0, left - self._left)
        self._left = left
        self._tell()

    def moved(self, size: int) -> None:
        self._left = max(0, self._left - size)  # a block that lags is asked for twice, and may come twice
        self._tell()

    def again(self, size: int) -> None:
        self._resent += size

    def _tell(self) -> None:
        self._follow(TransferProgress(self._total - self._left, self._total, self._resent))
