"""Where things lie under the image's root, as paths. The names themselves are the contract's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from remote_payload import contract
from remote_payload.contract import JobFile, Prepared, Stage, StagePlan


@dataclass(frozen=True)
class Layout:
    """The folders and files of one box. `root` is the image's root, the directory every command starts in."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / contract.RUN_DIR

    @property
    def model(self) -> Path:
        return self.root / contract.MODEL_DIR

    @property
    def out(self) -> Path:
        return self.run / contract.OUT_DIR

    @property
    def log(self) -> Path:
        return self.run / contract.LOG_FILE

    @property
    def events(self) -> Path:
        return self.run / contract.EVENTS_FILE

    @property
    def status(self) -> Path:
        return self.run / contract.STATUS_FILE

    @property
    def manifest(self) -> Path:
        return self.run / contract.MANIFEST_FILE

    @property
    def prepared(self) -> Path:
        return self.run / contract.PREPARED_FILE

    @property
    def placement(self) -> Path:
        """How this attempt's training stages run (placement.Placed)."""
        return self.run / "placement.json"

    @property
    def stop(self) -> Path:
        """Exists while somebody wants the running stage to save a checkpoint and end."""
        return self.run / "stop"

    @property
    def chain(self) -> Path:
        """Which process runs the stages now (processes.Identity); absent when none does."""
        return self.run / "chain.json"

    @property
    def chain_lock(self) -> Path:
        """Locked (flock) by the chain and every stage it started, for as long as one of them lives."""
        return self.run / "chain.lock"

    @property
    def kept(self) -> Path:
        """Holds the one checkpoint that is on its way home (keep.py)."""
        return self.run / contract.KEPT_DIR

    def stage(self, stage: Stage) -> Path:
        """The folder a stage works in: run/sft, run/dpo, run/gguf."""
        return self.run / stage.lower()

    def adapter(self, stage: Stage) -> Path:
        """The PEFT folder a training stage leaves behind."""
        return self.stage(stage) / "adapter"

    def parent(self, job: JobFile, stage: Stage) -> Path | None:
        """The adapter that a training stage goes on with: the last stage's or start_from's; None for a fresh one."""
        if stage is Stage.DPO and job.sft:
            return self.adapter(Stage.SFT)
        return self.file(job.start_from.path) if job.start_from else None

    def held_out(self, stage: Stage) -> Path:
        """What the models up to this stage made of the held-out rows (held_out.py); its folder is its own."""
        return self.stage(stage) / "held_out" / "scores.json"

    def tensorboard(self, stage: Stage) -> Path:
        """TensorBoard's files of a training stage, where the job wants them."""
        return self.stage(stage) / "tensorboard"

    def result(self, stage: Stage) -> Path:
        """What a stage says it produced, written as its last act."""
        return self.stage(stage) / "result.json"

    def markers(self, nonce: str) -> Path:
        """run/stages/<nonce>: started.json, then done.json or failed.json."""
        return self.run / contract.STAGES_DIR / contract.checked_path(nonce).name

    def file(self, path: str) -> Path:
        """A file named by the contract relative to the root. Raises ContractError when the name leads elsewhere."""
        return self.root / contract.checked_path(path)

    def read_job(self) -> JobFile:
        """Raises ContractError or FileNotFoundError."""
        return contract.load(JobFile, (self.run / contract.JOB_FILE).read_bytes())

    def read_settled(self) -> JobFile:
        """The job with what `prepare` settled in place of what the person left to it. Raises as `read_job`."""
        job = self.read_job()
        if not self.prepared.exists():
            return job
        prepared = self.read_prepared()
        return replace(
            job,
            max_length=prepared.max_length or job.max_length,
            reasoning=prepared.reasoning or job.reasoning,
        )

    def read_prepared(self) -> Prepared:
        """Raises ContractError or FileNotFoundError."""
        return contract.load(Prepared, self.prepared.read_bytes())


def plan_of(job: JobFile, stage: Stage) -> StagePlan | None:
    """The job's entry for `stage`, None when this attempt does not run it."""
    return next((plan for plan in job.stages if plan.stage is stage), None)


def final_adapter(layout: Layout, job: JobFile) -> Path:
    """The adapter that the last training stage of the job left."""
    return layout.adapter(Stage.DPO if plan_of(job, Stage.DPO) else Stage.SFT)
