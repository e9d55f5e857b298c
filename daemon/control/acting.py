"""What an act has at hand, and the two holds that more than one of them may come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import structlog

from daemon.artifacts.folder import set_aside
from daemon.box.keys import own_key
from daemon.control.bell import Bell
from daemon.control.homecoming import Homecoming
from daemon.control.link import Link
from daemon.control.mirror import gone
from daemon.control.mirroring import Mirroring
from daemon.control.rebuilding import Rebuilding
from daemon.control.snapshot import Memory
from daemon.control.world import World
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import Trigger
from daemon.domain.machine import Facts, fire
from daemon.domain.snapshot import Snapshot
from daemon.domain.spec import JobSpec
from daemon.errors import CredentialsRefused, LostRace, MarketError
from daemon.store import artifacts, downloads, jobs

log = structlog.get_logger()
SPOKEN = ("state", "hold_reason", "wish", "spoken_at")  # columns that a command or a move changes


@dataclass
class Acting:
    """One job's, for as long as its driver lives."""

    world: World
    job_id: str
    spec: JobSpec
    rows: dict[str, int]
    memory: Memory
    link: Link
    bell: Bell
    mirroring: Mirroring
    rebuilding: Rebuilding

    def hold(self, s: Snapshot, reason: HoldReason, detail: str) -> None:
        """Raises LostRace when somebody spoke, or the job moved, since `s`. Our own permit changes nothing of that.

        In the place of another hold it goes on with its price limit: nobody has spoken, so nobody knows of a new one.
        """
        w = self.world
        with w.database.write() as c:
            job = jobs.get(c, self.job_id)
            if any(getattr(job, name) != getattr(s.job, name) for name in SPOKEN):
                raise LostRace(f"job {job.id} changed since version {s.job.version}")
            jobs.hold(c, job, reason, detail, w.clock.wall_ms(), w.database.epoch, since=job.hold_since)
        log.warning("job.held", job=self.job_id, reason=reason.value, detail=detail)
        w.news.set()

    def hold_without_mirror(self, s: Snapshot) -> bool:
        """Held where what training made was brought here and its folder is gone: its disk may only not be there.

        To go on would train all of that again.
        """
        with self.world.database.read() as c:
            why = gone(c, self.job_id, self.mirroring.mirror)
        if why is not None:
            self.hold(s, HoldReason.DISK_FULL, why)
        return why is not None

    def artifact_lost(self, s: Snapshot, why: str) -> None:
        """The receipt does not describe this disk any more: superseded, back to GGUF, and held for the person."""
        w = self.world
        if s.job.model_dir:
            set_aside(Path(s.job.model_dir))
        with w.database.write() as c:
            now = w.clock.wall_ms()
            artifacts.supersede(c, s.job, why, now)
            downloads.forget(c, self.job_id)
            to = fire(s.job.state, Trigger.ARTIFACT_LOST, self.facts(s))
            jobs.move(c, s.job, to, now, w.database.epoch, model_dir=None)
            jobs.hold(c, jobs.get(c, self.job_id), HoldReason.ARTIFACT_LOST, why, now, w.database.epoch)
        w.news.set()

    async def attach_key(self, s: Snapshot) -> None:
        """Ask the market to let our key in; what it says against that the next login shows. Raises Fenced."""
        if s.lease is None:
            return
        with_key = own_key(self.world.settings.paths.ssh_key)
        self.world.database.refuse_overtaken()
        try:
            await self.world.operator.market.attach_key(s.lease.instance_id, with_key)
        except (MarketError, CredentialsRefused) as error:
            log.info("key.not_attached", job=self.job_id, error=str(error))

    def home(self, s: Snapshot) -> Homecoming:
        w = self.world
        return Homecoming(s.job, self.spec, w.settings, w.database, w.clock, w.verify)

    def facts(self, s: Snapshot, *, has_receipt: bool | None = None) -> Facts:
        return Facts(
            has_sft=self.spec.sft is not None,
            has_dpo=self.spec.dpo is not None,
            nothing_rented=s.nothing_rented,
            has_receipt=s.receipt is not None if has_receipt is None else has_receipt,
        )
