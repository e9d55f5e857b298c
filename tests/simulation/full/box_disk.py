"""What lies on one rented box and runs there: its own truth, whoever looks.

A box knows which nonce was claimed, how far the chain of stages is, what was really made, and what failed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from daemon.errors import RemoteFailed
from remote_payload import contract
from remote_payload.contract import (
    ArtifactFile,
    Done,
    Failed,
    JobFile,
    Manifest,
    Output,
    Phase,
    Role,
    Stage,
    Status,
)

from .machine import Machine

if TYPE_CHECKING:
    from .simulation import Simulation

CHUNK = 2048
STAGE_S = {Stage.SFT: 240.0, Stage.DPO: 120.0, Stage.GGUF: 60.0}
CHECKPOINT_S = 30.0


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made(job: str, path: str) -> bytes:
    """What training makes of a job: the same bytes every time, on every machine."""
    size = {"gguf": 5000, "safetensors": 700}.get(path.rsplit(".", 1)[-1], 90)
    seed = sha256(f"{job}:{path}".encode()).encode()
    return (seed * (size // len(seed) + 1))[:size]


FILES = {"model-Q8_0.gguf": (Role.GGUF, "Q8_0"), "adapter/adapter.safetensors": (Role.ADAPTER, None)}


@dataclass
class BoxDisk:
    """What one machine's box is and has. Training goes on while the machine runs, whoever looks."""

    sim: Simulation
    machine: Machine
    job: JobFile | None = None
    claimed: dict[str, int] = field(default_factory=dict)  # starts that reached the runner, by nonce
    began: dict[str, int] = field(default_factory=dict)  # times that the claim was won, by nonce
    ends: dict[str, Done | Failed] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)  # nonces of stages that failed here at some time
    manifest: str | None = None
    made: set[str] = field(default_factory=set)  # sha256 of every manifest that the last stage wrote here
    swapped: bool = False  # its host gives out another model, and a manifest that is true of that
    running: str | None = None  # nonce
    chain: JobFile | None = None  # as the runner read it when it began
    progress_s: float = 0.0
    mirrored_s: float = 0.0  # progress that came up with an earlier machine's checkpoint, for the stage begun next
    kept: dict[str, str] = field(default_factory=dict)  # the checkpoint that is being fetched: where, and of which
    boots: int = 1
    silent_until: float = 0.0
    drips: bool = False  # its host sends as slowly as it can without being given up
    quiet_since: float = 0.0  # a stage ran then, or somebody called
    _at: float = 0.0

    @property
    def worked(self) -> bool:
        """Some stage was started here: there may be something to lose."""
        return bool(self.claimed)

    def reboot(self) -> None:
        self.advance()
        self.boots += 1
        self.running, self.progress_s = None, 0.0

    def advance(self) -> None:
        """The chain, up to now."""
        now = self.sim.clock.boot()
        passed, self._at = now - self._at, now
        if not self.machine.powered or self.machine.ended_at is not None:
            return
        while self.running is not None and self.chain is not None:
            plan = next(each for each in self.chain.stages if each.nonce == self.running)
            left = STAGE_S[plan.stage] - self.progress_s
            if passed < left:
                self.progress_s += passed
                self.quiet_since = now
                return
            passed -= left
            self.quiet_since = now - passed
            self._finish(plan.stage, plan.nonce)

    def _finish(self, stage: Stage, nonce: str) -> None:
        assert self.job is not None and self.chain is not None
        if self.sim.sky.strikes("stage fails"):
            self.ends[nonce] = Failed(stage, nonce, self.chain.attempt, 40, "DIVERGED", "\x1b[31mloss is nan")
            self.failed.add(nonce)
            self.running = None
            return
        path = f"run/{stage.lower()}/adapter.safetensors"
        outputs = [Output(path, 700, sha256(made(self.job.name, path)))]
        if stage is Stage.GGUF:
            self.swapped = False  # it writes anew what was swapped
            self.manifest = contract.dump(self._manifest(nonce))
            text = self.manifest.encode()
            outputs = [Output(f"{contract.RUN_DIR}/{contract.MANIFEST_FILE}", len(text), sha256(text))]
            self.made.add(sha256(text))
        self.ends[nonce] = Done(stage, nonce, self.chain.attempt, outputs, STAGE_S[stage])
        self._next()

    def _next(self) -> None:
        assert self.chain is not None
        left = [plan.nonce for plan in self.chain.stages if not isinstance(self.ends.get(plan.nonce), Done)]
        self.running, self.progress_s = (left[0] if left else None), 0.0
        if self.running:
            self.progress_s, self.mirrored_s = self.mirrored_s, 0.0
            self.began[self.running] = self.began.get(self.running, 0) + 1

    def take(self, path: str, content: bytes) -> None:
        """A file brought up: the work of an earlier machine counts here too."""
        if path.endswith(contract.DONE_FILE):
            done = contract.load(Done, content)
            self.ends[done.nonce] = done
        elif path.endswith(contract.CHECKPOINT_MANIFEST):
            self.mirrored_s = CHECKPOINT_S

    def _manifest(self, nonce: str) -> Manifest:
        assert self.job is not None
        files = []
        for name, (role, quant) in FILES.items():
            content = self.content(name)
            chunks = [sha256(content[i : i + CHUNK]) for i in range(0, len(content), CHUNK)]
            files.append(ArtifactFile(f"run/out/{name}", role, len(content), sha256(content), chunks, quant))
        return Manifest(self.job.job, self.job.attempt, nonce, 1.0, CHUNK, files)

    def content(self, name: str) -> bytes:
        assert self.job is not None
        return made("another" if self.swapped else self.job.name, name)

    def swap(self) -> str:
        """The manifest of the other model, for this job and under the nonce of its last stage."""
        assert self.job is not None
        self.swapped = True
        return contract.dump(self._manifest(self.job.stages[-1].nonce))

    def forged_done(self, nonce: str) -> Done | None:
        """It names the nonce that is asked for, and another stage. None: it was given no stage of that nonce yet."""
        assert self.job is not None
        true = next((plan.stage for plan in self.job.stages if plan.nonce == nonce), None)
        if true is None:
            return None
        return Done(next(stage for stage in Stage if stage is not true), nonce, self.job.attempt, [], 1.0)

    def start(self, nonce: str) -> Status:
        """`run start`: the claim is won once; a runner that died is begun again under the same nonce."""
        if self.job is None or nonce not in _nonces(self.job):
            raise RemoteFailed("run start: no such stage in job.json", exit_code_remote=10)
        self.advance()
        if self.running is not None and self.chain is not None and nonce not in _nonces(self.chain):
            raise RemoteFailed("run start: the chain of another attempt is alive", exit_code_remote=10)
        self.claimed[nonce] = self.claimed.get(nonce, 0) + 1
        if self.running is None and not isinstance(self.ends.get(nonce), Done):
            self.ends.pop(nonce, None)
            self.chain = self.job
            self._next()
        return self.status()

    def status(self) -> Status:
        assert self.job is not None
        of = self.chain if self.running is not None and self.chain is not None else self.job
        plan = next((each for each in of.stages if each.nonce == self.running), None)
        phase = Phase.RUNNING if plan else Phase.DONE if self.ends else Phase.STARTING
        checkpoint = f"run/{plan.stage.lower()}/checkpoint-30" if plan and self.progress_s > CHECKPOINT_S else None
        return Status(
            of.job, of.attempt, phase, plan.stage if plan else None, self.running, 1.0,
            f"boot-{self.boots}", 7, step=int(self.progress_s), total_steps=240, checkpoint=checkpoint,
        )  # fmt: skip


def _nonces(job: JobFile) -> set[str]:
    return {plan.nonce for plan in job.stages}
