"""Rented boxes: what lies on their disks and runs there, and the connection of one daemon's life to one of them.

A box keeps its own truth: which nonce was claimed, how far the chain of stages is, what was really made. The connection
has the public methods of daemon/box/box.py. Bytes come home by the production's own download over a simulated lane.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import asyncssh

from daemon.box.address import BoxAddress
from daemon.box.box import BoxStatus, Proven
from daemon.box.download import Download, DurableChunks, TransferProgress
from daemon.box.meter import CountBytes
from daemon.box.pace import Pace
from daemon.box.upload import Upload
from daemon.errors import AccessDenied, HostKeyChanged, LinkLost, RemoteFailed, TransferFailed
from remote_payload import contract
from remote_payload.contract import (
    ArtifactFile,
    Checkpoint,
    Done,
    Failed,
    JobFile,
    Manifest,
    Output,
    Phase,
    Prepared,
    Role,
    Stage,
    Status,
)

from .loop import LIFE
from .machine import Machine

if TYPE_CHECKING:
    from .simulation import Simulation

T = TypeVar("T")
ROOT = "/root/homeport"
CHUNK = 2048
STAGE_S = {Stage.SFT: 240.0, Stage.DPO: 120.0, Stage.GGUF: 60.0}
PATIENCE_S = 60.0
CHECKPOINT_S = 30.0
HOSTILE = b'{"kind": "step", "stage": "SFT", "step": 1e400, "t": "x"}\n[[[[\n\x1b]0;pwned\x07\x00\xff\n'


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
    manifest: str | None = None
    running: str | None = None  # nonce
    progress_s: float = 0.0
    mirrored_s: float = 0.0  # progress that came up with an earlier machine's checkpoint, for the stage begun next
    boots: int = 1
    silent_until: float = 0.0
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
        while self.running is not None and self.job is not None:
            plan = next(each for each in self.job.stages if each.nonce == self.running)
            left = STAGE_S[plan.stage] - self.progress_s
            if passed < left:
                self.progress_s += passed
                self.quiet_since = now
                return
            passed -= left
            self.quiet_since = now - passed
            self._finish(plan.stage, plan.nonce)

    def _finish(self, stage: Stage, nonce: str) -> None:
        assert self.job is not None
        if self.sim.sky.strikes("stage fails"):
            self.ends[nonce] = Failed(stage, nonce, self.job.attempt, 40, "DIVERGED", "\x1b[31mloss is nan")
            self.running = None
            return
        path = f"run/{stage.lower()}/adapter.safetensors"
        outputs = [Output(path, 700, sha256(made(self.job.name, path)))]
        if stage is Stage.GGUF:
            self.manifest = contract.dump(self._manifest(nonce))
            text = self.manifest.encode()
            outputs = [Output(f"{contract.RUN_DIR}/{contract.MANIFEST_FILE}", len(text), sha256(text))]
        self.ends[nonce] = Done(stage, nonce, self.job.attempt, outputs, STAGE_S[stage])
        self._next()

    def _next(self) -> None:
        assert self.job is not None
        left = [plan.nonce for plan in self.job.stages if not isinstance(self.ends.get(plan.nonce), Done)]
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
        return made(self.job.name, name)

    def start(self, nonce: str) -> Status:
        """`run start`: the claim is won once; a runner that died is begun again under the same nonce."""
        if self.job is None or nonce not in {plan.nonce for plan in self.job.stages}:
            raise RemoteFailed("run start: no such stage in job.json", exit_code_remote=10)
        self.advance()
        self.claimed[nonce] = self.claimed.get(nonce, 0) + 1
        if self.running is None and not isinstance(self.ends.get(nonce), Done):
            self.ends.pop(nonce, None)
            self._next()
        return self.status()

    def status(self) -> Status:
        assert self.job is not None
        plan = next((each for each in self.job.stages if each.nonce == self.running), None)
        phase = Phase.RUNNING if plan else Phase.DONE if self.ends else Phase.STARTING
        checkpoint = f"run/{plan.stage.lower()}/checkpoint-30" if plan and self.progress_s > CHECKPOINT_S else None
        return Status(
            self.job.job, self.job.attempt, phase, plan.stage if plan else None, self.running, 1.0,
            f"boot-{self.boots}", 7, step=int(self.progress_s), total_steps=240, checkpoint=checkpoint,
        )  # fmt: skip


class Boxes:
    """Every box there ever was; `connect` is the port that a life's world is given."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.disks: dict[int, BoxDisk] = {}

    def box(self, instance_id: int) -> BoxDisk:
        if instance_id not in self.disks:
            self.disks[instance_id] = BoxDisk(
                self.sim, self.sim.market.machines[instance_id], _at=self.sim.clock.boot()
            )
        return self.disks[instance_id]

    def connect(self, address: BoxAddress, count: CountBytes) -> FakeBox:
        return FakeBox(self.sim, address, count)


class FakeBox:
    """One connection. Every method can lose its link before or after the box has done what it was asked."""

    def __init__(self, sim: Simulation, address: BoxAddress, count: CountBytes) -> None:
        self.sim, self.address, self._count = sim, address, count

    async def _ask(self, what: str, act: Callable[[BoxDisk], T], seconds: float = 0.0) -> T:
        sim, sky = self.sim, self.sim.sky
        ending = sim.ending("box", what)
        if ending == "error before":
            raise LinkLost("connection reset")
        await asyncio.sleep(sim.chance.choice((0.1, 0.4)) + seconds)
        disk = self._reached()
        if ending is None:
            if sky.strikes("half open"):
                await asyncio.sleep(75.0)
                raise LinkLost(f"{what}: no answer in time")
            if sky.strikes("link lost before"):
                raise LinkLost("connection reset")
        disk.advance()
        disk.quiet_since = sim.clock.boot()
        result = act(disk)
        sim.after(ending)
        if ending == "effect, then error" or (ending is None and sky.strikes("link lost after")):
            raise LinkLost("connection reset")
        return result

    def _reached(self) -> BoxDisk:
        """The box behind the address, if anything answers there."""
        sim = self.sim
        machine = sim.market.machines.get(self.address.instance_id)
        now = sim.clock.boot()
        if machine is None or not machine.is_there or not machine.powered or machine.offline_until > now:
            raise LinkLost("no route to host")
        if self.address.endpoints != (("203.0.113.7", machine.port),):
            raise LinkLost("connection refused")
        disk = sim.boxes.box(machine.id)
        if disk.silent_until > now:
            raise LinkLost("banner time-out")
        if sim.sky.strikes("login refused"):
            raise AccessDenied("permission denied")
        if self.address.host_key is not None and self.address.host_key != machine.host_key:
            raise HostKeyChanged("the host key is not the pinned one")
        return disk

    async def prove(self) -> Proven:
        return await self._ask("prove", lambda d: Proven(d.machine.host_key, ROOT, "/venv/main/bin/python"))

    async def run(self, *command: str) -> str:
        return await self._ask("run", lambda d: "")

    async def upload_payload(self) -> None:
        await self._ask("upload_payload", lambda d: None)

    async def bootstrap(self, pins: Sequence[str] = ()) -> str:
        return await self._ask("bootstrap", lambda d: "/venv/main/bin/python", 10.0)

    async def preflight(self) -> dict[str, Any]:
        def check(disk: BoxDisk) -> dict[str, Any]:
            bad = self.sim.sky.strikes("preflight fails")
            return {"ok": not bad, "checks": [{"name": "disk", "ok": not bad, "detail": "\x1b[2Jtoo small"}]}

        return await self._ask("preflight", check)

    async def upload(self, files: Sequence[Upload]) -> None:
        def take(disk: BoxDisk) -> None:
            for file in files:
                content = file.local.read_bytes()
                if sha256(content) != file.sha256:
                    raise TransferFailed(f"{file.remote} hashed wrong")
                disk.take(file.remote, content)

        await self._ask("upload", take)
        self._count(sum(file.size for file in files), 0)

    async def write_job(self, job: JobFile) -> None:
        def write(disk: BoxDisk) -> None:
            disk.job = job

        await self._ask("write_job", write)

    async def prepare(self, env: Mapping[str, str]) -> Prepared:
        def read(disk: BoxDisk) -> Prepared:
            job = disk.job
            assert job is not None
            rows = (job.sft_data.rows if job.sft_data else 0, job.dpo_data.rows if job.dpo_data else 0)
            if self.sim.sky.strikes("data refused"):
                return Prepared(False, "", *rows, problems=["row 3 is empty"], exit_code=contract.Exit.BAD_DATA)
            if self.sim.sky.strikes("wrong counts"):
                rows = (rows[0] + 1, rows[1])
            return Prepared(True, job.integration.line(*rows), *rows)

        return await self._ask("prepare", read, 5.0)

    async def start_stage(self, nonce: str, env: Mapping[str, str]) -> Status:
        self.sim.wire("stage_start", self.address.instance_id, nonce=nonce)
        return await self._ask("start_stage", lambda d: d.start(nonce))

    async def status(self) -> BoxStatus:
        def look(disk: BoxDisk) -> BoxStatus:
            status = disk.status() if disk.claimed else None
            return BoxStatus(disk.running is not None, status, f"boot-{disk.boots}", 0, 0)

        return await self._ask("status", look)

    async def stop_stages(self) -> None:
        def stop(disk: BoxDisk) -> None:
            disk.running, disk.progress_s = None, 0.0

        await self._ask("stop_stages", stop)

    async def read_lines(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        lines = b'{"kind": "step", "stage": "SFT", "step": 1, "t": 1.0, "loss": 2.5}\n' if name == "events" else b"hi\n"

        def read(disk: BoxDisk) -> tuple[bytes, int]:
            hostile = self.sim.sky.strikes("hostile log")
            chunk = b"" if offset else HOSTILE if hostile else lines
            return chunk, offset + len(chunk)

        return await self._ask(f"read {name}", read)

    async def stage_end(self, nonce: str) -> Done | Failed | None:
        def look(disk: BoxDisk) -> Done | Failed | None:
            if self.sim.sky.strikes("forged done"):
                raise TransferFailed(f"the marker of stage {nonce} speaks of another")
            return disk.ends.get(nonce)

        return await self._ask("stage_end", look)

    async def manifest(self) -> tuple[Manifest, str, str] | None:
        def look(disk: BoxDisk) -> tuple[Manifest, str, str] | None:
            text = disk.manifest
            return (contract.load(Manifest, text), sha256(text.encode()), text) if text else None

        return await self._ask("manifest", look)

    async def download(
        self,
        manifest: Manifest,
        folder: Path,
        durable: DurableChunks,
        progress: Callable[[TransferProgress], None],
        pace: Pace | None = None,
    ) -> None:
        run = Download(manifest, ROOT, folder, durable, progress, self._dial, PATIENCE_S)  # type: ignore[arg-type]
        await self._ask("download", lambda d: None)
        await run.run()

    async def _dial(self) -> _Lane:
        await asyncio.sleep(0.2)
        self._reached()
        return _Lane(self)

    async def fetch_folder(
        self, remote: str, folder: Path, only: Collection[str] = (), *, pace: Pace | None = None
    ) -> list[Output]:
        path = f"{remote}/adapter.safetensors"
        content = await self._ask("fetch_folder", lambda d: made(d.job.name if d.job else "", path), 2.0)
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nobody else has this thread
        (folder / "adapter.safetensors").write_bytes(content)
        output = Output("adapter.safetensors", len(content), sha256(content))
        if "/checkpoint-" in remote:
            whole = contract.dump(Checkpoint(Stage.SFT, int(CHECKPOINT_S), "print", [output]))
            (folder / contract.CHECKPOINT_MANIFEST).write_text(whole)
        return [output]

    async def aclose(self) -> None:
        return None


class _Lane:
    """What production's Lane asks of its link and of SFTP: open, read at an offset, size."""

    name = "box"
    limits = SimpleNamespace(max_read_len=1 << 20, max_write_len=1 << 20)

    def __init__(self, box: FakeBox) -> None:
        self._box = box

    async def sftp(self) -> _Lane:
        return self

    def abort(self) -> None:
        return None

    def count(self, up: int, down: int) -> None:
        self._box._count(up, down)

    def _content(self, path: str) -> bytes | None:
        disk = self._box._reached()
        name = path.removeprefix(f"{ROOT}/run/out/")
        return disk.content(name) if disk.manifest and name in FILES else None

    async def stat(self, path: str) -> SimpleNamespace:
        content = await self._traffic(path)
        if content is None:
            raise asyncssh.SFTPNoSuchFile(path)
        return SimpleNamespace(size=len(content))

    async def open(self, path: str, flags: int, **_: Any) -> _File:
        return _File(self, path)

    async def _traffic(self, path: str) -> bytes | None:
        sim = self._box.sim
        ending = sim.ending("box", "block")
        await asyncio.sleep(0.1)
        if (ending or "").startswith("error") or ending == "effect, then error" or sim.sky.strikes("download cut"):
            raise asyncssh.SFTPConnectionLost("cut")
        sim.after(ending)
        return self._content(path)


@dataclass
class _File:
    lane: _Lane
    path: str

    async def read(self, size: int, offset: int) -> bytes:
        block = bytearray((await self.lane._traffic(self.path) or b"")[offset : offset + size])
        if block and self.lane._box.sim.sky.strikes("bit flip"):
            block[0] ^= 1
        return bytes(block)


def acting() -> str:
    """Who acts now, for the trace."""
    life = LIFE.get()
    return str(life) if life is not None else "world"
