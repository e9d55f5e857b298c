"""Files brought home because a person asks: a checkpoint of a job's machine, or files of a machine rented by hand.

Each runs in the background under a number, so that a command line can follow it and leave it. Nothing here stops,
destroys or changes a machine. A transfer that ends early is asked for again and goes on by what lies there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import structlog

from daemon.artifacts import sizes
from daemon.box import foreign
from daemon.box.address import BoxAddress
from daemon.box.box import PATIENCE_S
from daemon.box.contact import Contact
from daemon.box.keys import own_key
from daemon.box.progress import Rate, TransferProgress
from daemon.control import checkpoints
from daemon.control.checkpoints import LATEST
from daemon.control.link import Link
from daemon.control.mirror import TRAINING, fetch_checkpoint
from daemon.control.world import World
from daemon.domain.market import HALTED
from daemon.errors import BoxError, HomeportError, HostKeyChanged, NoSuchJob, Refused, TransferFailed
from daemon.store import leases, stages

log = structlog.get_logger()
KEPT = 100  # finished transfers that can still be asked about


@dataclass
class Transfer:
    """One of them. Bytes; `began` and `ended` by the monotonic clock, in seconds."""

    to: Path
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    done: int = 0
    total: int = 0
    resent: int = 0
    files: list[dict[str, Any]] = field(default_factory=list)
    problem: HomeportError | None = None
    rate: Rate = field(default_factory=Rate)

    def follow(self, progress: TransferProgress) -> None:
        self.rate.hear(progress, time.monotonic())
        self.done, self.total, self.resent = progress.done, progress.total, progress.resent

    def view(self) -> dict[str, Any]:
        now = self.ended or time.monotonic()
        per_s = self.rate.per_s(now)
        left = self.total - self.done
        return {
            "state": "RUNNING" if self.ended is None else "FAILED" if self.problem else "DONE",
            "to": str(self.to),
            "done": self.done,
            "total": self.total,
            "resent": self.resent,
            "per_s": round(per_s or 0),
            "eta_s": round(left / per_s) if per_s and self.ended is None else None,
            "seconds": round(now - self.began, 1),
            "files": self.files,
            "problem": str(self.problem) if self.problem else None,
            "hint": self.problem.hint if self.problem else None,
        }


@dataclass
class ByHand:
    """Every transfer asked for by hand since the daemon began."""

    world: World
    _transfers: dict[int, Transfer] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def view(self, number: int) -> dict[str, Any]:
        if number not in self._transfers:
            raise NoSuchJob(f"no transfer {number} since the daemon began", hint="ask for the files again")
        return self._transfers[number].view()

    async def pull(self, job: str, checkpoint: str, to: str) -> dict[str, Any]:
        """A whole checkpoint of the job into `to`, from its machine or from what came home: the newest, or a step's.

        Raises Refused, which says what there is.
        """
        if checkpoint != LATEST and not checkpoint.isdecimal():
            raise Refused(f"--checkpoint {checkpoint}: expected latest or a step", hint=f"jobctl pull {job}")
        transfer, link, silence = Transfer(_folder(to)), Link(self.world), ""
        with self.world.database.read() as c:
            lease = leases.live(c, job)
            nonces = {str(stage): stages.lineage(c, job, stage) for stage in TRAINING}
        found = checkpoints.at_home(self.world.mirror_folder(job), nonces)
        try:
            if lease is not None and lease.status in HALTED:
                silence = "; its machine is stopped and was not asked"
            elif lease is not None and lease.host_key is not None:
                found += await checkpoints.on_machine(await link.to(lease))
        except BoxError as error:
            silence = f"; its machine does not answer ({error})"
        except BaseException:
            await link.drop()
            raise
        spot = checkpoints.choose(found, checkpoint)
        if spot is None:
            await link.drop()
            what = "whole checkpoint" if checkpoint == LATEST else f"whole checkpoint of step {checkpoint}"
            there = f"there are: {checkpoints.listed(found)}{silence}"
            raise Refused(f"job {job} has no {what}, on its machine or here; {there}", hint=f"jobctl show {job}")
        into = transfer.to / spot.stage.lower() / spot.path.name  # SFT and DPO may both have this step

        async def bring() -> None:
            try:
                if spot.here is None and lease is not None:
                    brought = await fetch_checkpoint(await link.to(lease), spot.path, into, follow=transfer.follow)
                else:
                    brought = await asyncio.to_thread(checkpoints.copy, spot, into)
                    transfer.done = transfer.total = sum(file.size for file in brought)
            finally:
                await link.drop()
            transfer.files = [
                {"path": str(into / file.path), "size": file.size, "sha256": file.sha256} for file in brought
            ]

        return self._start(transfer, bring)

    async def fetch(self, instance: int, pattern: str, to: str, fingerprint: str | None) -> dict[str, Any]:
        """Files of any machine of this account into `to`. Raises Refused with the fingerprint to compare, BoxError."""
        seen = await self.world.operator.market.show(instance)
        if seen is None:
            raise NoSuchJob(f"this account has no instance {instance}", hint="jobctl leases")
        ends = tuple(end for end in (seen.direct, seen.proxy) if end is not None)
        if not seen.is_running or not ends:
            raise Refused(f"instance {instance} is {seen.actual_status}: it has no address", hint="start it first")
        key = self.world.settings.paths.ssh_key
        await self.world.operator.market.attach_key(instance, own_key(key))
        pinned = await self._pinned(BoxAddress(instance, ends, None, "", "/", "python3"), fingerprint)
        transfer = Transfer(_folder(to))
        contact = Contact(pinned, asyncssh.read_private_key(key), lambda up, down: None)

        async def bring() -> None:
            try:
                manifest, top = await foreign.describe(contact, pattern)
                transfer.total = sum(file.size for file in manifest.files)
                brought = await foreign.fetch(contact, manifest, top, transfer.to, transfer.follow, PATIENCE_S)
            finally:
                contact.close()
            for file, path in zip(manifest.files, brought, strict=True):
                found = {"path": str(path), "size": file.size, "sha256": file.sha256}
                transfer.files.append(found | _floor(path.name, file.size))

        with self.world.database.read() as c:
            lease = leases.by_instance(c, instance)
        return self._start(transfer, bring) | {"job": lease.job_id if lease is not None and lease.is_held else None}

    async def _pinned(self, address: BoxAddress, fingerprint: str | None) -> BoxAddress:
        """With the host key that a person has compared, now or before; one of our own machines has proven its."""
        with self.world.database.read() as c:
            lease = leases.by_instance(c, address.instance_id)
        file = self.world.settings.paths.state / "hosts" / str(address.instance_id)
        known = lease.host_key if lease is not None else None
        if known is None and file.exists():
            known = file.read_text().strip() or None
        if known is None:
            shown, found = await foreign.shown_key(address)
            if fingerprint is None:
                raise Refused(
                    f"instance {address.instance_id} shows the host key {found}, which nobody has confirmed yet",
                    hint="compare it on the machine (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then again "
                    f"with --host-key {found}",
                )
            if fingerprint != found:
                raise HostKeyChanged(f"instance {address.instance_id} shows the host key {found}, not {fingerprint}")
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(file.name + ".new")
            beside.write_text(shown + "\n")
            beside.replace(file)
            known = shown
        return BoxAddress(address.instance_id, address.endpoints, known, "", address.root, address.python)

    def _start(self, transfer: Transfer, bring: Callable[[], Awaitable[None]]) -> dict[str, Any]:
        number = max(self._transfers, default=0) + 1
        self._transfers[number] = transfer
        for old in [n for n, kept in self._transfers.items() if kept.ended is not None][:-KEPT]:
            del self._transfers[old]
        task = asyncio.create_task(_ended(transfer, bring))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return {"transfer": number, "to": str(transfer.to)}


async def _ended(transfer: Transfer, bring: Callable[[], Awaitable[None]]) -> None:
    """Whatever ends it is kept for whoever asks."""
    try:
        await bring()
    except HomeportError as error:
        transfer.problem = error
        log.warning("transfer.failed", to=str(transfer.to), error=str(error))
    except OSError as error:
        why = f"{error.filename or transfer.to}: {error.strerror or error}"  # a full disk names no file
        transfer.problem = TransferFailed(why, hint="make room, or give another --to")
        log.warning("transfer.failed", to=str(transfer.to), error=str(error))
    except Exception as error:
        transfer.problem = TransferFailed(f"internal error: {error!r}", hint="the trace is in the daemon's log")
        log.error("transfer.failed", to=str(transfer.to), exc_info=error)
    finally:
        transfer.ended = time.monotonic()


def _folder(to: str) -> Path:
    folder = Path(to)
    if not folder.is_absolute():
        raise Refused(f"--to {to}: expected an absolute path")
    return folder


def _floor(name: str, size: int) -> dict[str, Any]:
    """The plain floor of a 7B or 8B model's file, where its name tells the quantisation."""
    for quant, floor in sizes.FLOORS.items():
        if name.endswith(f"{quant}.gguf"):
            return {"quant": quant, "floor": floor, "above_floor": size > floor}
    return {}
