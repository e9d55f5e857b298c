"""What leaves the daemon for market or box: I1, I6, I7, I12, I14, I18 and I19, before the request arrives there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from daemon.artifacts.folder import RECEIPT
from daemon.domain.ids import label_job
from remote_payload.contract import Done

from .box_disk import made
from .loop import Life
from .machine import Machine
from .market import FOREIGN

if TYPE_CHECKING:
    from .invariants import Witness

A_MOMENT_S = 2.0  # between the last look at the files and the request


class Wire:
    """Looks at every changing request."""

    def __init__(self, witness: Witness) -> None:
        self.witness, self.sim = witness, witness.sim
        self._started: dict[str, int] = {}  # the machine, by nonce
        self._nonces: dict[tuple[str, int, str], str] = {}  # by job, attempt and stage

    def forget(self) -> None:
        """A restored database may draw other nonces for what it does not know."""
        self._nonces.clear()

    def request(self, what: str, instance: int, life: Life | None, *, label: str = "", nonce: str = "") -> None:
        self.witness.noted(what)
        machine = self.sim.market.machines.get(instance)
        job = label_job(label) if machine is None else machine.job
        newest = max((other.epoch or 0 for other in self.sim.lives), default=0)
        if life is not None and (life.epoch or 0) < newest:
            self.witness.accuse("I12", f"{what} of {instance} by {life}, which was overtaken")
        if instance in FOREIGN:
            self.witness.accuse("I18", f"{what} of {instance}, which is not ours")
        if what == "create":
            if self.sim.market.creates.get(label):
                self.witness.accuse("I7", "a label was sent twice")
            intent = "SELECT 1 FROM operations WHERE label = ? AND job_id = ? AND state = 'SENT'"
            if not self.witness.rows(intent, label, job):
                self.witness.accuse("I6", "a create without a committed intent of its job")
        if what in ("create", "stage_start") and job in self.sim.person.cancelled:
            self.witness.accuse("I19", f"{what} after the job was cancelled")
        if what in ("start", "stop", "stage_start", "destroy"):
            self._of_its_job(what, instance, job)
        if what in ("stop", "destroy"):
            self.witness.told(instance)
        if what == "stage_start":
            self._starts_once(nonce, instance, job)
        if what == "destroy":
            self._may_destroy(instance, job)

    def brought(self, machine: Machine, path: str, content: bytes) -> None:
        """Training of an earlier machine goes up to a new one, to go on from."""
        name = self.witness.names().get(machine.job or "")
        if path.endswith(".safetensors") and content != made(name or "", path):
            self.witness.accuse("I14", f"{path} on {machine.id} is not what its job made")

    def written(self, machine: Machine, job: str) -> None:
        """A job.json."""
        if job != machine.job:
            self.witness.accuse("I14", f"{machine.id} is given the job.json of {job}")

    def _of_its_job(self, what: str, instance: int, job: str | None) -> None:
        query = "SELECT job_id FROM operations WHERE kind = ? AND instance_id = ? AND state IN ('SENT', 'UNKNOWN')"
        if job not in {row["job_id"] for row in self.witness.rows(query, what, instance)}:
            self.witness.accuse("I18", f"{what} of {instance}, and no operation of its job asks for it")

    def _starts_once(self, nonce: str, instance: int, job: str | None) -> None:
        first = self._started.setdefault(nonce, instance)
        if first != instance and not isinstance(self.sim.boxes.box(first).ends.get(nonce), Done):
            self.witness.accuse("I14", f"{nonce} is started on {instance} and was on {first}")
        for row in self.witness.rows("SELECT job_id, attempt, stage FROM stages WHERE nonce = ?", nonce):
            if row["job_id"] != job:
                self.witness.accuse("I14", f"{row['stage']} of {row['job_id']} is started on {instance} of {job}")
            if self._nonces.setdefault(tuple(row), nonce) != nonce:
                self.witness.accuse("I14", f"{row['stage']} of attempt {row['attempt']} is started under two nonces")

    def _may_destroy(self, instance: int, job: str | None) -> None:
        disk = self.sim.boxes.disks.get(instance)
        if disk is None or not disk.worked or self.sim.person.permits(instance):
            return
        just_now = self.sim.clock.boot() - self.sim.person.deleted_at < A_MOMENT_S  # no look can be later than the last
        if not just_now and not self._current_set_is_home(job or ""):
            self.witness.accuse("I1", f"destroy of {instance}, which may hold the only copy")

    def _current_set_is_home(self, job: str) -> bool:
        """The model that some box of the job made for it as it is now, under a receipt that names its manifest."""
        written = {m for disk in self.sim.boxes.disks.values() if disk.machine.job == job for m in disk.made}
        rows = self.witness.rows("SELECT manifest_sha256 FROM jobs WHERE id = ?", job)
        wanted = {row["manifest_sha256"] for row in rows} & written
        return any(
            self.witness.is_whole(folder, job)
            and json.loads((folder / RECEIPT).read_text())["manifest_sha256"] in wanted
            for folder in self.sim.settings.paths.models.glob(f"*/v*-{job}")
            if (folder / RECEIPT).exists()
        )
