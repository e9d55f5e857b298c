"""Rented boxes, and the connection of one daemon's life to one of them.

The connection has the public methods of daemon/box/box.py. Bytes come home by the production's own download over a
simulated lane (lane.py); what a box is and has is in box_disk.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from daemon.box.address import BoxAddress
from daemon.box.box import BoxStatus, Proven
from daemon.box.download import Download, DurableChunks
from daemon.box.meter import CountBytes
from daemon.box.pace import Pace
from daemon.box.progress import Follow, nobody
from daemon.box.upload import Upload
from daemon.errors import AccessDenied, HostKeyChanged, LinkLost, TransferFailed
from remote_payload import contract
from remote_payload.contract import (
    Checkpoint,
    Done,
    Failed,
    JobFile,
    Manifest,
    Needs,
    Output,
    Prepared,
    Stage,
    Status,
)

from .box_disk import CHECKPOINT_S, BoxDisk, made, sha256
from .lane import ROOT, Lane
from .loop import LIFE

if TYPE_CHECKING:
    from .simulation import Simulation

T = TypeVar("T")
PATIENCE_S = 60.0
HOSTILE = b'{"kind": "step", "stage": "SFT", "step": 1e400, "t": "x"}\n[[[[\n\x1b]0;pwned\x07\x00\xff\n'


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
        self._silence_s: float | None = None
        self.drip = asyncio.Lock()

    @property
    def drips(self) -> bool:
        return self.sim.boxes.box(self.address.instance_id).drips

    def allow_silence(self, seconds: float) -> None:
        self._silence_s = seconds

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
        disk.machine.called(self._silence_s)
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

    async def bootstrap(self, pins: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
        return await self._ask("bootstrap", lambda d: "/venv/main/bin/python", 10.0)

    async def preflight(self, needs: Needs, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        def check(disk: BoxDisk) -> dict[str, Any]:
            bad = self.sim.sky.strikes("preflight fails")
            checks = [{"name": "disk", "ok": not bad, "detail": "\x1b[2Jtoo small"}]
            return {"ok": not bad, "checks": checks, "gpus": [{"name": "H100", "memory": 80 << 30}]}

        return await self._ask("preflight", check)

    async def upload(self, files: Sequence[Upload], follow: Follow = nobody) -> None:
        def take(disk: BoxDisk) -> None:
            for file in files:
                content = file.local.read_bytes()
                if sha256(content) != file.sha256:
                    raise TransferFailed(f"{file.remote} hashed wrong")
                self.sim.witness.wire.brought(disk.machine, file.remote, content)
                disk.take(file.remote, content)

        await self._ask("upload", take)
        self._count(sum(file.size for file in files), 0)

    async def write_job(self, job: JobFile) -> None:
        def write(disk: BoxDisk) -> None:
            self.sim.witness.wire.written(disk.machine, job.job)
            disk.job = job

        await self._ask("write_job", write)

    async def prepare(self, env: Mapping[str, str], timeout_s: float = 0.0) -> Prepared:
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
            if not self.sim.sky.strikes("forged done"):
                return disk.ends.get(nonce)
            if self.sim.chance.random() < 0.5:
                raise TransferFailed(f"the marker of stage {nonce} speaks of another")  # as the true Box sees by itself
            return disk.forged_done(nonce)

        end = await self._ask("stage_end", look)
        if end is None:
            self.sim.market.machines[self.address.instance_id].looked_at = self.sim.clock.mono()
        return end

    async def manifest(self) -> tuple[Manifest, str, str] | None:
        def look(disk: BoxDisk) -> tuple[Manifest, str, str] | None:
            text = disk.manifest
            if text and self.sim.sky.strikes("forged manifest"):
                text = disk.swap()
            return (contract.load(Manifest, text), sha256(text.encode()), text) if text else None

        return await self._ask("manifest", look)

    async def download(
        self,
        manifest: Manifest,
        folder: Path,
        durable: DurableChunks,
        follow: Follow,
        pace: Pace | None = None,
    ) -> None:
        run = Download(manifest, ROOT, folder, durable, follow, self._dial, PATIENCE_S)  # type: ignore[arg-type]
        await self._ask("download", lambda d: None)
        await run.run()

    async def _dial(self) -> Lane:
        await asyncio.sleep(0.2)
        self._reached()
        return Lane(self)

    async def keep(self, checkpoint: PurePosixPath, nonce: str) -> PurePosixPath:
        def link(disk: BoxDisk) -> PurePosixPath:
            kept = PurePosixPath(contract.RUN_DIR, contract.KEPT_DIR, nonce, checkpoint.name)
            disk.kept = {str(kept): str(checkpoint)}
            return kept

        return await self._ask("keep", link)

    async def fetch_folder(
        self,
        remote: str,
        folder: Path,
        only: Collection[str] = (),
        *,
        pace: Pace | None = None,
        follow: Follow = nobody,
    ) -> list[Output]:
        def read(disk: BoxDisk) -> bytes:
            return made(disk.job.name if disk.job else "", f"{disk.kept.get(remote, remote)}/adapter.safetensors")

        content = await self._ask("fetch_folder", read, 2.0)
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nobody else has this thread
        (folder / "adapter.safetensors").write_bytes(content)
        output = Output("adapter.safetensors", len(content), sha256(content))
        if "/checkpoint-" in remote:
            whole = contract.dump(Checkpoint(Stage.SFT, int(CHECKPOINT_S), "print", [output]))
            (folder / contract.CHECKPOINT_MANIFEST).write_text(whole)
        return [output]

    async def aclose(self) -> None:
        return None


def acting() -> str:
    """Who acts now, for the trace."""
    life = LIFE.get()
    return str(life) if life is not None else "world"
