"""The detached chain: every stage of job.json in order, each step its own subprocess, and a heartbeat all the while.

Killed at any moment it can be started again under the same nonces: finished stages are skipped, the unfinished one
resumes from its newest whole checkpoint. It owns status.json and the stage markers; the scripts own their folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from remote_payload import away, checkpoints, contract, gpu, hashes, manifest, placement, reporting
from remote_payload.contract import Done, Exit, Failed, JobFile, Output, Phase, Stage, StagePlan, Started, Status
from remote_payload.layout import Layout
from remote_payload.placement import Placed
from remote_payload.processes import Identity, boot_id, start_ticks
from remote_payload.progress import Events, read_from
from remote_payload.ranks import GRACE_S, Ranks
from remote_payload.tell import tell

STEPS: dict[Stage, tuple[str, ...]] = {
    Stage.SFT: ("sft", "held_out"),
    Stage.DPO: ("dpo", "held_out"),
    Stage.GGUF: ("gguf", "evaluate", "manifest"),
}

TRAINING = ("sft", "dpo")  # steps of one process for each card with `placement: ddp`

# For every stage. The model is in place since `prepare`, so a lookup on the hub could only stall or surprise.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # the versions are pinned: their future says nothing to the reader
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # batches of changing length would fragment card memory
}

BEAT_S = 1.0
GPU_BEAT_S = 10.0  # nvidia-smi takes a noticeable fraction of a second
LAST_LINES = 40  # of the log, into failed.json
LAST_BYTES = 64 << 10  # likewise: nothing says how long a line is, nor how long the log
# Automatic resumes of one step, by what ended it. A kill or a silent rank may be chance, once; lack of memory halves
# the micro batch, and four times lead from the largest default, 16 rows, to one.
KILL_RETRIES = 1
MEMORY_RETRIES = 4
# A training tells every step, so one that tells nothing for so long hangs: a card that fell off its bus, a reader of
# data that waits for itself. Its longest step takes less. Before its first word it makes ids of all rows, a millisecond
# each, and loads the model from a disk that may be slow.
SILENCE_S = 3600.0
FIRST_WORD_S = 6 * 3600.0  # and for every word of another step: some tell nothing before their end


@dataclass
class Chain:
    """One life of the chain. `lock` is the open lock file; stages inherit it, so a held lock means something lives."""

    layout: Layout
    job: JobFile
    lock: int
    status: Status
    events_read: int = 0
    gpu_at: float = field(default=-GPU_BEAT_S)
    cards: gpu.Cards = field(default_factory=gpu.Cards)

    def run(self) -> Phase:
        """Run what is not done yet. Returns DONE, FAILED or STOPPED; the last status.json says the same."""
        for plan in self.job.stages:
            markers = self.layout.markers(plan.nonce)
            if (markers / contract.DONE_FILE).exists():
                continue
            if (markers / contract.FAILED_FILE).exists():
                return self.end(Phase.FAILED, f"{plan.stage} failed")
            phase = self.run_stage(plan, markers)
            if phase is not Phase.DONE:
                return phase
        return self.end(Phase.DONE, "every stage is done")

    def run_stage(self, plan: StagePlan, markers: Path) -> Phase:
        began = time.time()
        log_began = self.layout.log.stat().st_size
        events = Events(self.layout.events, plan.stage, plan.nonce)
        claim(self.layout, plan, markers)
        self.status = replace(
            self.status,
            stage=plan.stage,
            nonce=plan.nonce,
            step=0,
            total_steps=0,
            loss=None,
            lr=None,
            tokens=0,
            tok_s=None,
            eta_s=None,
        )
        self.events_read = 0  # what this nonce did in an earlier life of the chain counts
        events.emit("stage_start")
        for step in self.steps(plan.stage):
            kills, shortages = KILL_RETRIES, MEMORY_RETRIES
            while (code := self.run_step(step, plan, markers)) is not Exit.OK:
                if code == Exit.STOPPED and not self.layout.stop.exists():
                    continue  # somebody asked to stop and then to start again
                if code == Exit.STOPPED:
                    return self.end(Phase.STOPPED, "stopped on request; the newest checkpoint is whole")
                lost = code < 0 or code == Exit.RANK_LOST
                kills -= lost
                shortages -= code == Exit.OUT_OF_MEMORY
                if (lost and kills >= 0) or (code == Exit.OUT_OF_MEMORY and shortages >= 0):
                    events.emit("warn", msg=f"{step}: {describe(code)}; resuming")
                    continue
                return self.fail(plan, markers, code, log_began)
        try:
            done = self.success(plan, time.time() - began)
        except (OSError, ValueError, KeyError) as error:
            events.emit("error", code=int(Exit.INTERNAL), msg=f"result of {plan.stage} unusable: {error!r}")
            return self.fail(plan, markers, Exit.INTERNAL, log_began)
        contract.write_whole(markers / contract.DONE_FILE, contract.dump(done))
        events.emit("stage_done", seconds=round(done.seconds, 3), outputs=len(done.outputs))
        return Phase.DONE

    def steps(self, stage: Stage) -> Iterator[str]:
        """What `stage` consists of; the first training stage of an attempt decides the placement, where it must be."""
        if STEPS[stage][0] in TRAINING and placement.decided(self.layout, self.job) is None:
            yield "place"
        yield from (step for step in STEPS[stage] if step != "held_out" or self.job.eval_data)

    def run_step(self, step: str, plan: StagePlan, markers: Path) -> int:
        """One step to its end, in as many processes as it has. Its exit code; negative when a signal killed it."""
        if self.layout.stop.exists():
            return Exit.STOPPED
        self.beat(Phase.RUNNING, step)  # what was told before it begins is no word of it
        placed = (step in TRAINING and placement.decided(self.layout, self.job)) or Placed("single")
        command = [interpreter(), "-m", f"remote_payload.{step}", "--root", str(self.layout.root)]
        command += ["--stage", plan.stage] if step in ("place", "held_out") else []
        environment = os.environ | ENVIRONMENT | placed.environment
        environment |= reporting.environment(self.layout, self.job, plan.stage, os.environ)
        with open(self.layout.log, "ab") as log:
            ranks = Ranks.start(command, placed.processes, environment, log, [self.lock])
        if not (markers / contract.STARTED_FILE).exists():
            ticks = start_ticks(ranks.pid) or 0
            began = Started(plan.stage, plan.nonce, self.job.attempt, ranks.pid, ticks, boot_id(), time.time())
            contract.write_whole(markers / contract.STARTED_FILE, contract.dump(began))
        heard_at, patience_s = time.monotonic(), FIRST_WORD_S
        while True:
            known = self.events_read
            self.beat(Phase.RUNNING, step)
            if self.events_read != known:
                heard_at, patience_s = time.monotonic(), SILENCE_S if step in TRAINING else FIRST_WORD_S
            code = ranks.wait(BEAT_S)
            if code is not None:
                return Exit.OK if code == 0 else code
            if time.monotonic() - heard_at > patience_s:
                ranks.end()
                ranks.finish(GRACE_S)  # the next life wants the memory of the cards
                silent = f"{step} told nothing for {patience_s / 60:.0f} minutes, and was ended"
                Events(self.layout.events, plan.stage, plan.nonce).emit("error", code=int(Exit.RANK_LOST), msg=silent)
                return Exit.RANK_LOST

    def success(self, plan: StagePlan, seconds: float) -> Done:
        result = json.loads(self.layout.result(plan.stage).read_text())
        if plan.stage is Stage.GGUF:
            outputs = manifest.outputs(self.layout)
        else:
            outputs = [hashes.output(self.layout.root, path) for path in result["outputs"]]
        self._settle(outputs)
        steps, metrics = result.get("steps", 0), result.get("metrics", {})
        return Done(plan.stage, plan.nonce, self.job.attempt, outputs, seconds, steps, metrics)

    def _settle(self, outputs: list[Output]) -> None:
        """What done.json will name is on the disk before it is: after a power cut nobody looks at it again.

        What is named and not there is found out at home, which has to doubt it all anyway.
        """
        files = {self.layout.root / output.path for output in outputs}
        folders = {folder for file in files for folder in (file.parent, file.parent.parent)}
        for path in filter(Path.exists, files | folders):
            checkpoints.sync(path)

    def failure(self, plan: StagePlan, code: int, log_began: int) -> Failed:
        """What the stage itself said last, else what its exit code means; with the end of its log."""
        lines, _ = read_from(self.layout.events, 0)
        said = [line["msg"] for line in lines if line["kind"] == "error" and line["nonce"] == plan.nonce]
        with open(self.layout.log, "rb") as log:
            log.seek(max(log_began, log.seek(0, os.SEEK_END) - LAST_BYTES))
            end = log.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        known = code in Exit.__members__.values()
        reason = said[-1] if said and known else describe(code)
        # A signal is told in the shell's way, 128 + its number: exit codes of the contract are positive.
        shown = code if code >= 0 else 128 - code
        return Failed(plan.stage, plan.nonce, self.job.attempt, shown, reason, "\n".join(end), self.status.checkpoint)

    def fail(self, plan: StagePlan, markers: Path, code: int, log_began: int) -> Phase:
        failed = self.failure(plan, code, log_began)
        contract.write_whole(markers / contract.FAILED_FILE, contract.dump(failed))
        return self.end(Phase.FAILED, f"{plan.stage}: {failed.reason}")

    def end(self, phase: Phase, detail: str) -> Phase:
        self.beat(phase, detail)
        return phase

    def beat(self, phase: Phase, detail: str) -> None:
        """Fold the events since the last beat into status.json."""
        lines, self.events_read = read_from(self.layout.events, self.events_read)
        for line in lines:
            self.status = advance(self.status, line)
        if time.monotonic() - self.gpu_at >= GPU_BEAT_S:
            self.gpu_at = time.monotonic()
            cards = self.cards.load()
            self.status = replace(self.status, gpu_util=cards.busy, gpu_memory=cards.memory)
        self.status = replace(self.status, phase=phase, detail=detail, updated_at=time.time())
        with contextlib.suppress(OSError):  # a full disk has room again once the save that filled it has failed
            contract.write_whole(self.layout.status, contract.dump(self.status))


def advance(status: Status, line: dict[str, Any]) -> Status:
    """`status` after one line of events.jsonl. Lines of other nonces (earlier attempts, other stages) say nothing."""
    if line["nonce"] != status.nonce or status.nonce is None:
        return status
    match line["kind"]:
        case "step":
            loss = line.get("loss")
            return replace(
                status,
                step=line["step"],
                total_steps=line["total"],
                loss=loss if isinstance(loss, float) else None,
                lr=line.get("lr"),
                tokens=line.get("tokens", 0),
                tok_s=line.get("tok_s"),
                eta_s=line.get("eta_s"),
            )
        case "checkpoint":
            return replace(status, checkpoint=line["path"], checkpoint_step=line["step"])
        case "resume":
            return replace(status, step=line["step"], checkpoint=line["path"], checkpoint_step=line["step"])
        case "placement":
            return replace(status, placement=f"{line['mode']}: {line['why']}")
    return status


def claim(layout: Layout, plan: StagePlan, markers: Path) -> None:
    """Make the nonce's folder. The first claim of a fresh stage sets aside what earlier nonces left of it.

    And of the stages that build on it, which would go on from checkpoints of another adapter: the attempt that finds
    them need not be the one that was to begin afresh.
    """
    if plan.fresh and not markers.exists():
        for stage in list(STEPS)[list(STEPS).index(plan.stage) :]:
            if (folder := layout.stage(stage)).exists():
                folder.rename(folder.with_name(f"{folder.name}.before-{plan.nonce}"))
    markers.mkdir(parents=True, exist_ok=True)
    layout.stage(plan.stage).mkdir(exist_ok=True)
    layout.result(plan.stage).unlink(missing_ok=True)


def describe(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"killed by signal {-code}"
    names = {int(member): member.name.lower().replace("_", " ") for member in Exit}
    return f"exit {code} ({names.get(code, 'not a code of the contract')})"


def interpreter() -> str:
    """The box's python. An image whose python is a launcher script names that script, for stages to start by it too."""
    return os.environ.get("HOMEPORT_PYTHON") or sys.executable


def live(layout: Layout) -> None:
    """Be the chain: take the lock, run, tell the owner, then see to it that somebody watches."""
    job = layout.read_job()
    lock = os.open(layout.chain_lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another chain was started at the same moment and was first
    nonces = [plan.nonce for plan in job.stages]
    own = Identity.own(nonces)
    contract.write_whole(layout.chain, own.dump())
    layout.log.touch()
    status = Status(job.job, job.attempt, Phase.STARTING, None, None, time.time(), own.boot_id, own.pid)
    chain = Chain(layout, job, lock, status)
    chain.beat(Phase.STARTING, "")
    phase = chain.run()
    layout.chain.unlink()
    os.close(lock)

    if phase in (Phase.DONE, Phase.FAILED):
        word = "finished" if phase is Phase.DONE else "failed"
        tell(job, Events(layout.events), f"homeport {job.name} ({job.job}): {word} - {chain.status.detail}")
    if job.away_limit_s is not None:
        away.watch(layout.root, job.away_limit_s)  # returns when the one from the container's start lives
