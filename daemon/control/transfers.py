"""How far a transfer is, told while it moves: in the database once a second for the screens, at its end in the log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from daemon.box.progress import Follow, Rate, TransferProgress
from daemon.control.world import World
from daemon.store import transfers

log = structlog.get_logger()
TELL_EVERY_S = 1.0


@dataclass
class _Telling:
    """One transfer of a job; `what` is UPLOAD or MIRROR, or DOWNLOAD, whose progress is in its durable set."""

    world: World
    job: str
    what: str
    rate: Rate = field(default_factory=Rate)
    told: float | None = None

    def hear(self, progress: TransferProgress) -> None:
        now = self.world.clock.mono()
        self.rate.hear(progress, now)
        waited_s = self.rate.took_s(now) if self.told is None else now - self.told
        if self.what != "DOWNLOAD" and waited_s >= TELL_EVERY_S:
            self.told = now
            w, per_s = self.world, self.rate.per_s(now)
            shown = {"done": progress.done, "total": progress.total, "resent": progress.resent, "per_s": per_s}
            with w.database.write() as c:
                transfers.put(c, self.job, w.database.epoch, w.clock.wall_ms(), what=self.what, **shown)

    def end(self) -> None:
        if self.told is not None:
            with self.world.database.write() as c:
                transfers.forget(c, self.job)
        now, last = self.world.clock.mono(), self.rate.last
        if last is not None and self.rate.came > 0:
            log.info(
                "transfer.ended",
                job=self.job,
                what=self.what,
                bytes=self.rate.came,
                left=last.total - last.done,
                resent=last.resent,
                seconds=round(self.rate.took_s(now), 1),
                mb_s=round((self.rate.per_s(now) or 0.0) / 1e6, 2),
            )


@contextmanager
def told(world: World, job: str, what: str) -> Iterator[Follow]:
    """What the transfer within has to tell its progress to."""
    telling = _Telling(world, job, what)
    try:
        yield telling.hear
    finally:
        telling.end()
