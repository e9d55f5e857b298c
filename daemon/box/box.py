"""A rented machine as the rest of the daemon sees it: prove, prepare, start, watch, bring home.

Everything is a question asked over SSH or a file copied by hash; what the box answers is parsed here, once, and what
cannot be parsed is a TransferFailed. Every method raises LinkLost when the box is out of contact, which says nothing
about the work on it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import asyncssh

from daemon.box.address import BoxAddress
from daemon.box.contact import ANSWER_S, REPLY_BYTES, Contact
from daemon.box.download import Download, DurableChunks, placed
from daemon.box.lines import whole_lines
from daemon.box.meter import CountBytes, Meter
from daemon.box.pace import Pace
from daemon.box.payload import upload_payload
from daemon.box.progress import Follow, nobody
from daemon.box.rescue import fetch_folder
from daemon.box.upload import Upload, upload
from daemon.errors import RemoteFailed, TransferFailed
from remote_payload import contract
from remote_payload.contract import (
    ContractError,
    Done,
    Exit,
    Failed,
    JobFile,
    Manifest,
    Needs,
    Output,
    Prepared,
    Status,
)

INSTALL_S = 2_700.0  # bootstrap: downloads and, at worst, a compilation
PREPARE_S = 3_600.0  # reads all data, beside fetching a base model
PREFLIGHT_S = 300.0
PATIENCE_S = 60.0  # of a transfer without one block moved

LineFile = Literal["events", "log"]
_LINE_FILES: dict[LineFile, str] = {"events": contract.EVENTS_FILE, "log": contract.LOG_FILE}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Proven:
    """What the proof found: the key to pin (OpenSSH line), and absolute paths on the box."""

    host_key: str
    root: str
    python: str


@dataclass(frozen=True)
class BoxStatus:
    """The runner's own view. `alive`: its chain of stages runs now; sizes in bytes; `boot_id` changes with a reboot."""

    alive: bool
    status: Status | None  # None before the first start
    boot_id: str
    events_size: int
    log_size: int


class Box:
    """One instance over SSH. Connections are made when needed; `aclose` drops them and never touches the work."""

    def __init__(
        self, address: BoxAddress, key: Path, *, on_bytes: CountBytes | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        """`key`: our private key file. `on_bytes` hears of bytes (up, down), once a second while they pass."""
        self._meter = Meter(on_bytes or (lambda up, down: None))
        self._contact = Contact(address, asyncssh.read_private_key(key), self._meter.count)
        self._patience_s = patience_s

    @property
    def address(self) -> BoxAddress:
        """With what `prove` and `bootstrap` found out."""
        return self._contact.address

    def allow_silence(self, seconds: float) -> None:
        """From now on each call tells the box how long it may stay idle and uncalled before it stops itself."""
        self._contact.silence_s = seconds

    async def prove(self) -> Proven:
        """Have the box prove that it is ours; must pass before anything else when no host key is pinned.

        Raises HostKeyChanged when it cannot or shows another key than the pinned one, AccessDenied when it does not
        know our key (yet), LinkLost also while its start script has not run.
        """
        await self._contact.prove()
        proven = self._contact.address
        return Proven(host_key=proven.host_key or "", root=proven.root, python=proven.python)

    async def run(self, *command: str, timeout_s: float = ANSWER_S, limit: int = REPLY_BYTES) -> str:
        """Run a command in the root and return its standard output: one text for the shell, or several arguments.

        Raises RemoteFailed when it ends with another code than 0 or prints more than `limit` bytes.
        """
        script = command[0] if len(command) == 1 else shlex.join(command)
        reply = await self._contact.shell(script, timeout_s=timeout_s, limit=limit)
        return reply.output

    async def upload_payload(self) -> None:
        """Bring the installed remote_payload package; nothing is sent when the box has this very version."""
        await upload_payload(self._contact)

    async def upload(self, files: Sequence[Upload], follow: Follow = nobody) -> None:
        """Bring files; those there with the right hash are skipped. The payload must be there, it does the hashing."""
        await upload(self._contact, files, self._patience_s, follow)

    async def write_job(self, job: JobFile) -> None:
        """Replace run/job.json, whole or not at all."""
        await self._contact.write_whole(f"{contract.RUN_DIR}/{contract.JOB_FILE}", contract.dump(job).encode())

    async def job(self) -> JobFile | None:
        """The run/job.json that lies there; None before one was written. Raises TransferFailed."""
        content = await self._contact.read_whole(f"{contract.RUN_DIR}/{contract.JOB_FILE}")
        return None if content is None else self._parsed(JobFile, content, contract.JOB_FILE)

    async def prepared(self) -> Prepared | None:
        """What `prepare` concluded there; None before it ran. Raises TransferFailed."""
        content = await self._contact.read_whole(f"{contract.RUN_DIR}/{contract.PREPARED_FILE}")
        return None if content is None else self._parsed(Prepared, content, contract.PREPARED_FILE)

    async def bootstrap(self, pins: Sequence[str] = (), env: Mapping[str, str] | None = None) -> str:
        """Make the environment over the image's; the absolute interpreter that is used from now on. Idempotent.

        `pins` (name==version) are needed beside the payload's own requirements. `env` may name the model to fetch.
        """
        script = shlex.join(["bash", f"{contract.PAYLOAD_DIR}/remote_payload/bootstrap.sh", self.address.python, *pins])
        reply = await self._contact.shell(script, timeout_s=INSTALL_S, env=env)
        label, _, python = reply.last_line.partition("=")
        if label != "PYTHON" or not python.startswith("/"):
            raise RemoteFailed(
                f"{self._contact.name}: bootstrap named no interpreter",
                exit_code_remote=reply.code,
                output=reply.output[-2000:],
            )
        self._contact.adopt_python(python)
        return python

    async def preflight(self, needs: Needs, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The box's own checks, passed or not: `ok`, and `checks` with name, ok and detail each."""
        arguments = ("preflight", "--needs", contract.dump(needs))
        codes = (Exit.OK, Exit.PREFLIGHT)
        reply = await self._contact.payload(*arguments, env=env, timeout_s=PREFLIGHT_S, accept=codes)
        try:
            return read_preflight(reply.last_line)
        except ContractError as error:
            raise TransferFailed(f"{self._contact.name}: preflight cannot be read: {error}") from error

    async def prepare(self, env: Mapping[str, str], timeout_s: float = PREPARE_S) -> Prepared:
        """Read and count the data, check integration line, tokenizer and template; objections are in the answer.

        `env` (a hub token) goes to this one command and is stored nowhere. Raises RemoteFailed when it gave no answer.
        """
        codes = (Exit.OK, Exit.BAD_CONFIG, Exit.BAD_DATA, Exit.INTEGRATION)
        reply = await self._contact.payload("prepare", env=env, timeout_s=timeout_s, accept=codes)
        try:
            return contract.load(Prepared, reply.last_line)
        except ContractError as error:
            raise RemoteFailed(
                f"{self._contact.name}: prepare ended with {reply.code} and no answer",
                exit_code_remote=reply.code,
                output=(reply.complaint or reply.output)[-2000:],
            ) from error

    async def start_stage(self, nonce: str, env: Mapping[str, str] | None = None) -> Status:
        """Have the stages run from the one with `nonce`. Repeating it with the same nonce changes nothing.

        `env` (a reporter's key) goes to the processes of this start and is stored nowhere.
        """
        reply = await self._contact.payload("run", "start", "--nonce", nonce, env=env)
        return self._parsed(Status, reply.last_line, "run start")

    async def status(self) -> BoxStatus:
        """Where the runner stands; counts for the box as a call from home."""
        reply = await self._contact.payload("run", "status")
        return self._parsed(BoxStatus, reply.last_line, "run status")

    async def stop_stages(self) -> None:
        """Ask for a checkpoint and an end; `status` tells when it has happened."""
        await self._contact.payload("run", "stop")

    async def read_lines(self, name: LineFile, offset: int, limit: int) -> tuple[bytes, int]:
        """Whole lines from `offset` on, at most `limit` bytes, and the offset to go on from. Show by clean_line."""
        block = await self._contact.read(f"{contract.RUN_DIR}/{_LINE_FILES[name]}", limit, offset)
        lines = whole_lines(block or b"", limit)
        return lines, offset + len(lines)

    async def stage_end(self, nonce: str) -> Done | Failed | None:
        """The marker of the stage started under `nonce`; None while it has neither finished nor failed."""
        if len(contract.checked_path(nonce).parts) != 1:
            raise ContractError(f"nonce {nonce!r} is not one name")
        folder = f"{contract.RUN_DIR}/{contract.STAGES_DIR}/{nonce}"
        end: Done | Failed
        if text := await self._contact.read_whole(f"{folder}/{contract.DONE_FILE}"):
            end = self._parsed(Done, text, contract.DONE_FILE)
        elif text := await self._contact.read_whole(f"{folder}/{contract.FAILED_FILE}"):
            end = self._parsed(Failed, text, contract.FAILED_FILE)
        else:
            return None
        if end.nonce != nonce:
            raise TransferFailed(f"{self._contact.name}: the marker of stage {nonce} speaks of {end.nonce!r}")
        return end

    async def manifest(self) -> tuple[Manifest, str, str] | None:
        """The artifact set, the sha256 of its text, and the text; None before it is written."""
        content = await self._contact.read_whole(f"{contract.RUN_DIR}/{contract.MANIFEST_FILE}")
        if content is None:
            return None
        manifest = self._parsed(Manifest, content, contract.MANIFEST_FILE)
        try:
            placed(manifest)
            text = content.decode("utf-8")
        except ValueError as error:
            raise TransferFailed(f"{self._contact.name}: {error}") from error
        return manifest, hashlib.sha256(content).hexdigest(), text

    async def download(
        self,
        manifest: Manifest,
        folder: Path,
        durable: DurableChunks,
        follow: Follow,
        pace: Pace | None = None,
    ) -> None:
        """Bring the artifact set into `folder`, each file under its path relative to run/out, re-read and fsynced.

        Goes on from what `durable` knows, no faster than `pace`. Raises LinkLost after `patience_s` without progress,
        TransferFailed when the source is not what the manifest promises, OSError of the local disk (ENOSPC before the
        first byte).
        """
        await Download(
            manifest, self.address.root, folder, durable, follow, self._contact.dial, self._patience_s, pace
        ).run()

    async def keep(self, checkpoint: PurePosixPath, nonce: str) -> PurePosixPath:
        """Have the machine keep a whole checkpoint of the stage started under `nonce` until another one is to be kept.

        Where it lies then: `checkpoint` itself, to be had for as long as training leaves it, where it cannot be kept.
        """
        try:
            await self._contact.payload("keep", str(checkpoint), nonce)
        except RemoteFailed:  # deleted already, a disk without links, or a payload that does not know how
            return checkpoint
        return PurePosixPath(contract.RUN_DIR, contract.KEPT_DIR, nonce, checkpoint.name)

    async def fetch_folder(
        self,
        remote: str,
        folder: Path,
        only: Collection[str] = (),
        *,
        pace: Pace | None = None,
        follow: Follow = nobody,
    ) -> list[Output]:
        """Bring whole checkpoints, adapters and logs under `remote` into `folder`; see rescue.fetch_folder."""
        return await fetch_folder(self._contact, remote, folder, only, self._patience_s, pace, follow)

    async def aclose(self) -> None:
        self._contact.close()
        self._meter.flush()

    def _parsed(self, kind: type[_T], text: str | bytes, source: str) -> _T:
        try:
            return contract.load(kind, text)
        except ContractError as error:
            raise TransferFailed(f"{self._contact.name}: {source} cannot be read: {error}") from error


def read_preflight(line: str) -> dict[str, Any]:
    """`ok`, and `checks`, each an object. Raises ContractError for anything else."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("ok"), bool):
        raise ContractError("no verdict")
    if not isinstance(found.get("checks", []), list):
        raise ContractError("its checks are no list")
    return found
