"""What training has made so far, kept on this disk too: a host that vanishes costs minutes, not the run.

    <models>/.rescue-<job>/<stage>-<nonce>/run/...    what that start of the stage left, at its paths on the box:
        run/sft/checkpoint-200/                       the newest two, each whole by its own checkpoint.json
        run/sft/adapter/ and run/stages/<nonce>/done.json    of a finished stage, done.json last

Everything in it is opaque here: hashes are checked, nothing is loaded. On the machine that replaces a lost one the same
files go up to the same paths, and the runner there goes on from them as it does after a kill.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath

from sqlalchemy import Connection

from daemon import platform
from daemon.artifacts import hashing
from daemon.box.box import Box
from daemon.box.pace import Pace
from daemon.box.progress import Follow, nobody
from daemon.box.upload import Upload
from daemon.domain.records import StageRun
from daemon.errors import TransferFailed
from daemon.store import events
from remote_payload.contract import (
    CHECKPOINT_MANIFEST,
    DONE_FILE,
    MANIFEST_FILE,
    OUT_DIR,
    RUN_DIR,
    STAGES_DIR,
    Checkpoint,
    ContractError,
    Done,
    Output,
    Stage,
    Status,
    checked_path,
    load,
    write_whole,
)

TRAINING = (Stage.SFT, Stage.DPO)  # what they make is small and dear, and trained on; the GGUF can be made again
CHECKPOINT = "checkpoint-"
ADAPTER = "adapter"
KEEP = 2  # checkpoints here: the older one is the answer to damage of the newer


class CheckpointGone(TransferFailed):
    """The machine deleted it before all of it was fetched: training keeps only the newest."""


async def fetch_checkpoint(
    box: Box, path: PurePosixPath, into: Path, pace: Pace | None = None, follow: Follow = nobody
) -> list[Output]:
    """All files of one checkpoint. Raises CheckpointGone, LinkLost, TransferFailed, OSError of the local disk."""
    brought = await box.fetch_folder(str(path), into, pace=pace, follow=follow)
    if not any(output.path == CHECKPOINT_MANIFEST for output in brought):
        raise CheckpointGone(
            f"{path} is not a whole checkpoint on the machine any more", hint="jobctl pull without --checkpoint"
        )
    return brought


@dataclass(frozen=True)
class Mirror:
    """One job's copy. `folder` need not exist."""

    folder: Path

    def has_outputs(self, run: StageRun) -> bool:
        """What the finished stage left is here, whole."""
        return (self._of(run.stage, run.nonce) / _marker(run)).is_file()

    def adapter(self, run: StageRun) -> Path:
        """The folder of the adapter that the finished training stage left; whole once `has_outputs`."""
        return self._of(run.stage, run.nonce) / RUN_DIR / run.stage.lower() / ADAPTER

    def kept(self, runs: Sequence[StageRun]) -> list[StageRun]:
        """The finished stages from the first on that a new machine need not run again. Disks forget: all is read."""
        return list(takewhile(lambda run: run.stage in TRAINING and run.done_json and self._is_unchanged(run), runs))

    def lacks_outputs(self, runs: Sequence[StageRun]) -> list[StageRun]:
        """The finished stages that are not here yet."""
        return [run for run in runs if run.done_json and not self.has_outputs(run)]

    def lacks_checkpoint(self, run: StageRun, status: Status | None) -> PurePosixPath | None:
        """The box's newest checkpoint of `run`, by its path there, when it is not here yet."""
        if status is None or status.nonce != run.nonce or not status.checkpoint:
            return None
        path = PurePosixPath(status.checkpoint)
        if not re.fullmatch(rf"{RUN_DIR}/{run.stage.lower()}/{CHECKPOINT}[0-9]{{1,9}}", str(path)):
            return None  # no path of a checkpoint: nothing to ask for
        here = self._of(run.stage, run.nonce) / path / CHECKPOINT_MANIFEST
        return None if here.is_file() else path

    async def bring_outputs(self, box: Box, run: StageRun, pace: Pace | None = None, follow: Follow = nobody) -> int:
        """What the finished stage left, held against its done.json. Returns the files that lie here.

        Raises LinkLost, TransferFailed, OSError of the local disk; may be called again.
        """
        into = self._of(run.stage, run.nonce)
        promised = _promised(run)
        found: dict[str, str] = {}
        for folder in _roots(promised):
            brought = await box.fetch_folder(str(folder), into / folder, pace=pace, follow=follow)
            found |= {str(folder / output.path): output.sha256 for output in brought}
        wrong = [path for path, sha256 in promised.items() if found.get(path) != sha256]
        if wrong:
            raise TransferFailed(f"{wrong[0]} is not what {run.stage}'s done.json promises")
        marker = into / _marker(run)
        marker.parent.mkdir(parents=True, exist_ok=True)
        write_whole(marker, run.done_json or "")
        self._sync_down_to(marker.parent)
        return len(promised)

    def begun(self, run: StageRun) -> PurePosixPath | None:
        """The checkpoint of which an earlier call brought a part, by its path on the box."""
        path = PurePosixPath(RUN_DIR, run.stage.lower())
        folders = (self._of(run.stage, run.nonce) / path).glob(f"{CHECKPOINT}*")
        return next((path / each.name for each in folders if not (each / CHECKPOINT_MANIFEST).exists()), None)

    async def bring_checkpoint(
        self, box: Box, run: StageRun, path: PurePosixPath, pace: Pace | None = None, follow: Follow = nobody
    ) -> None:
        """One checkpoint, whole; then only the newest KEEP stay. Raises CheckpointGone, else as bring_outputs.

        The box keeps it meanwhile, and after a broken connection until another one is asked for. What was begun of
        another one goes first: nobody fetches the rest of it, and the model needs the room.
        """
        into = self._of(run.stage, run.nonce) / path
        for begun in into.parent.glob(f"{CHECKPOINT}*"):
            if begun != into and not (begun / CHECKPOINT_MANIFEST).exists():
                shutil.rmtree(begun)
        await fetch_checkpoint(box, await box.keep(path, run.nonce), into, pace, follow)
        self._sync_down_to(into)
        for old in _newest_first(into.parent)[KEEP:]:
            shutil.rmtree(old)

    def newest(self, stage: str, nonces: Sequence[str]) -> Path | None:
        """The newest checkpoint of the stage that is whole on this disk, among the starts `nonces`."""
        folders = [f for nonce in nonces for f in _newest_first(self._of(stage, nonce) / RUN_DIR / stage.lower())]
        return next((folder for folder in sorted(folders, key=_step, reverse=True) if _is_whole(folder)), None)

    def uploads(self, runs: Sequence[StageRun], earlier: Sequence[str]) -> Iterator[Upload]:
        """What a new machine needs to go on: finished stages with their markers, the newest checkpoint of the next.

        `earlier` are the nonces under which that next stage ran before, since it was last begun afresh.
        """
        for run in runs:
            top = self._of(run.stage, run.nonce)
            if run.done_json and self.has_outputs(run):
                for path, sha256 in _promised(run).items():
                    yield Upload(top / path, path, sha256, (top / path).stat().st_size)
                yield _upload(top / _marker(run), str(_marker(run)))
            elif run.stage in TRAINING:
                checkpoint = self.newest(run.stage, earlier)
                for file in sorted(checkpoint.rglob("*")) if checkpoint else []:
                    if file.is_file() and checkpoint:
                        remote = PurePosixPath(RUN_DIR, run.stage.lower(), checkpoint.name)
                        yield _upload(file, str(remote / file.relative_to(checkpoint).as_posix()))
                return

    def count(self) -> int:
        """The files that lie here, whole."""
        return sum(path.is_file() and path.suffix != ".part" for path in self.folder.rglob("*"))

    def forget_checkpoints(self) -> None:
        """The model is verified: what could only have helped to train it again makes room."""
        for folder in self.folder.glob(f"*/{RUN_DIR}/*/{CHECKPOINT}*"):
            shutil.rmtree(folder)

    def _is_unchanged(self, run: StageRun) -> bool:
        """What the finished stage left is here, and still what it was when it came."""
        top = self._of(run.stage, run.nonce)
        try:
            return self.has_outputs(run) and all(hashing.sha256(top / p) == sha for p, sha in _promised(run).items())
        except OSError:  # gone or unreadable: the stage runs again, from its newest checkpoint
            return False

    def _sync_down_to(self, folder: Path) -> None:
        """What is recorded as saved lies in folders that a power cut leaves."""
        for holder in (folder, *folder.parents):
            platform.sync_folder(holder)
            if holder == self.folder.parent:
                return

    def _of(self, stage: str, nonce: str) -> Path:
        return self.folder / f"{stage}-{nonce}"


def gone(c: Connection, job: str, mirror: Mirror) -> str | None:
    """Where what came home is not to be found, and what to do: to begin without it would train all of it again."""
    if mirror.folder.is_dir() or events.newest(c, job, ("checkpoint.home", "stage.home")) is None:
        return None
    way = f"put its disk or models_dir back; to train anew without it: mkdir {shlex.quote(str(mirror.folder))}"
    return f"what was saved of the training lay in {mirror.folder}, which is gone: {way}"


def _marker(run: StageRun) -> PurePosixPath:
    return PurePosixPath(RUN_DIR, STAGES_DIR, run.nonce, DONE_FILE)


def _promised(run: StageRun) -> dict[str, str]:
    """Path on the box -> sha256 of what the finished stage left, but for the manifest, which is stored elsewhere.

    Raises ContractError for a path outside the stage's own folder: what a box names goes up to the next machine, where
    it must replace neither payload nor job.
    """
    folder = PurePosixPath(RUN_DIR, run.stage.lower() if run.stage in TRAINING else OUT_DIR)
    found = {}
    for output in load(Done, run.done_json or "").outputs:
        path = checked_path(output.path)
        if path == PurePosixPath(RUN_DIR, MANIFEST_FILE):
            continue
        if folder not in path.parents or any(part.startswith(CHECKPOINT) for part in path.parts):
            raise ContractError(f"done.json of {run.stage} names {path}, which is not under {folder}")
        found[str(path)] = output.sha256
    return found


def _roots(paths: Iterable[str]) -> list[PurePosixPath]:
    """The folders that hold `paths`, without those that lie in another of them."""
    folders = {PurePosixPath(path).parent for path in paths}
    return sorted(folder for folder in folders if not folders & set(folder.parents))


def _newest_first(stage_folder: Path) -> list[Path]:
    """Checkpoints that came home to the end: their manifest is brought last."""
    whole = (f.parent for f in stage_folder.glob(f"{CHECKPOINT}*/{CHECKPOINT_MANIFEST}"))
    return sorted((f for f in whole if f.name.removeprefix(CHECKPOINT).isdigit()), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def _is_whole(checkpoint: Path) -> bool:
    """Every file is still what the checkpoint's own manifest says."""
    try:
        promised = load(Checkpoint, (checkpoint / CHECKPOINT_MANIFEST).read_bytes()).files
        return all(hashing.sha256(checkpoint / checked_path(file.path)) == file.sha256 for file in promised)
    except (OSError, ContractError):  # unreadable here: the one before it will do
        return False


def _upload(file: Path, remote: str) -> Upload:
    return Upload(file, remote, hashing.sha256(file), file.stat().st_size)
