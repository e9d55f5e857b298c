"""The standing connection to one box: dialled when it is needed, used for commands and small files."""

from __future__ import annotations

import asyncio
import json
import secrets
import shlex
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import cast

import asyncssh

from daemon.box import challenge
from daemon.box.address import BoxAddress
from daemon.box.command import Reply
from daemon.box.link import Link, connect, translated, within
from daemon.box.meter import CountBytes
from daemon.errors import HostKeyChanged, LinkLost, Overdue, RemoteFailed, TransferFailed
from remote_payload import contract
from remote_payload.contract import ContractError, Output

REPLY_BYTES = 1 << 20  # no script answers with more
ANSWER_S = 60.0  # for commands that only look or touch
HASH_S = 1_800.0  # hashing reads whole files
FILE_S = 300.0  # for one small file or folder: an SFTP server on a disk that hangs says nothing, while sshd lives on
_CALLED = f"{contract.RUN_DIR}/{contract.CALLED_FILE}"


class Contact:
    """Holds at most one link. A lost one is replaced at the next call, never within a call: what was sent may have run.

    `silence_s`: what each call allows the box from then on, before it stops itself; None leaves what it knows.
    Until `prove` has passed, every other call raises HostKeyChanged: an unproven box is told nothing.
    """

    def __init__(self, address: BoxAddress, key: asyncssh.SSHKey, count: CountBytes) -> None:
        self.address = address
        self._key = key
        self._count = count
        self.silence_s: float | None = None
        self._link: Link | None = None
        self._dialling = asyncio.Lock()

    @property
    def name(self) -> str:
        return f"instance {self.address.instance_id}"

    async def prove(self) -> None:
        """Run the challenge over whatever key the box shows, pin that key, make root and python absolute."""
        self.close()
        link = await connect(self.address, self._key, self._count)
        try:
            await self._challenge(link)
            reply = await link.call(_resolve(self.address), timeout_s=ANSWER_S, limit=REPLY_BYTES)
            if reply.code != 0 or len(reply.output.splitlines()) != 2:
                raise self._failed("cannot make its root", reply)
        except BaseException:
            link.abort()
            raise
        root, python = reply.output.splitlines()
        self.address = replace(self.address, host_key=link.host_key, root=root, python=python)
        self._link = link

    async def _challenge(self, link: Link) -> None:
        asked = challenge.question(secrets.token_hex(32), link.host_key)
        reply = await link.call(challenge.prover(self.address.python, asked), timeout_s=ANSWER_S, limit=REPLY_BYTES)
        if reply.code != 0:
            raise self._failed("cannot run the host key proof", reply)
        if reply.last_line.strip() == challenge.NOT_YET:
            raise LinkLost(f"{self.name}: its start script has not run yet")
        if not challenge.is_right(reply.last_line, self.address.challenge, asked):
            raise HostKeyChanged(
                f"{self.name}: whoever answers at its address does not know the secret we gave it",
                hint="nothing was sent; the connection may be intercepted",
            )

    async def link(self) -> Link:
        async with self._dialling:
            if self._link is None or not self._link.is_open:
                self._link = await self.dial()
            return self._link

    async def dial(self) -> Link:
        """A further connection, the caller's to close."""
        if not self.address.host_key:
            raise HostKeyChanged(f"{self.name}: its host key is not proven yet")
        return await connect(self.address, self._key, self._count)

    async def shell(
        self,
        script: str,
        *,
        timeout_s: float = ANSWER_S,
        limit: int = REPLY_BYTES,
        env: Mapping[str, str] | None = None,
        accept: Container[int] = (0,),
    ) -> Reply:
        """Run `script` in the root; a call from home.

        Raises RemoteFailed when it ends with a code outside `accept`, or not in the time that was set for it: it hangs,
        and would again. What only looks (ANSWER_S) may be slow on a busy box: that is Overdue.
        """
        link = await self.link()
        call = f"touch {_CALLED}" if self.silence_s is None else f"echo {self.silence_s:.0f} > {_CALLED}"
        try:
            reply = await link.call(
                f"{call}\n{script}", timeout_s=timeout_s, limit=limit, folder=self.address.root, env=env
            )
        except Overdue as error:
            if timeout_s <= ANSWER_S:
                raise
            raise RemoteFailed(str(error), exit_code_remote=-1) from error
        if reply.code not in accept:
            raise self._failed(f"exit code {reply.code}", reply)
        return reply

    async def payload(
        self,
        module: str,
        *arguments: str,
        timeout_s: float = ANSWER_S,
        env: Mapping[str, str] | None = None,
        accept: Container[int] = (0,),
    ) -> Reply:
        """Run a script of the payload."""
        argv = [self.address.python, "-m", f"remote_payload.{module}", *arguments]
        path = {"PYTHONPATH": contract.PAYLOAD_DIR, **(env or {})}
        return await self.shell(shlex.join(argv), timeout_s=timeout_s, env=path, accept=accept)

    async def hashes(self, paths: Sequence[str]) -> dict[str, Output]:
        """What the box says lies at `paths` (relative to the root); absent ones are left out."""
        reply = await self.payload("hashes", *paths, timeout_s=HASH_S)
        try:
            return read_hashes(reply.output)
        except ContractError as error:
            raise TransferFailed(f"{self.name}: its hashes cannot be read: {error}") from error

    async def chunk_hashes(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """The hashes of the chunks of CHUNK_SIZE that the box says lie at `paths`; absent ones are left out."""
        reply = await self.payload("hashes", "--chunks", *paths, timeout_s=HASH_S)
        try:
            said = [json.loads(line) for line in reply.output.splitlines() if line.strip()]
            return {str(each["path"]): [str(chunk) for chunk in each.get("chunks", ())] for each in said}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TransferFailed(f"{self.name}: its hashes cannot be read: {error}") from error

    async def read(self, path: str, limit: int, offset: int = 0) -> bytes | None:
        """At most `limit` bytes of a file under the root; None when it is not there."""
        link = await self.link()
        sftp = await link.sftp()
        with translated(f"{self.name}: read {path}"), within(link, FILE_S):
            try:
                async with sftp.open(f"{self.address.root}/{path}", "rb", encoding=None) as file:
                    content = cast(bytes, await file.read(limit, offset))
            except asyncssh.SFTPNoSuchFile:  # which is an answer here
                return None
        self._count(0, len(content))
        return content

    async def read_whole(self, path: str) -> bytes | None:
        """A file of the contract. Raises TransferFailed when it is longer than one may be."""
        limit = contract.MAX_JSON_BYTES
        content = await self.read(path, limit + 1)
        if content is not None and len(content) > limit:
            raise TransferFailed(f"{self.name}: {path} is over {limit} bytes")
        return content

    async def write_whole(self, path: str, content: bytes) -> None:
        """Write a small file under the root so that it appears whole or not at all."""
        link = await self.link()
        sftp = await link.sftp()
        final = f"{self.address.root}/{path}"
        beside = f"{final}.{secrets.token_hex(4)}.new"
        with translated(f"{self.name}: write {path}"), within(link, FILE_S):
            await sftp.makedirs(final.rpartition("/")[0], exist_ok=True)
            async with sftp.open(beside, "wb", encoding=None) as file:
                await file.write(content)
                await file.fsync()
            await sftp.posix_rename(beside, final)
        self._count(len(content), 0)

    def adopt_python(self, python: str) -> None:
        """Use this interpreter from now on."""
        self.address = replace(self.address, python=python)

    def close(self) -> None:
        if self._link is not None:
            self._link.abort()
            self._link = None

    def _failed(self, what: str, reply: Reply) -> RemoteFailed:
        said = (reply.complaint.strip() or reply.output.strip())[-2000:]
        last = said.splitlines()[-1] if said else "it said nothing"
        return RemoteFailed(f"{self.name}: {what}: {last}", exit_code_remote=reply.code, output=said)


def _resolve(address: BoxAddress) -> str:
    """Print root and interpreter as absolute paths, two lines, from the login directory."""
    root, python = shlex.quote(address.root), shlex.quote(address.python)
    return f"""set -e
mkdir -p {root}/{contract.RUN_DIR}
case {python} in
  /*) python={python} ;;
  */*) python="$PWD"/{python} ;;
  *) python="$(command -v {python})" ;;
esac
cd {root}
pwd
printf '%s\\n' "$python\""""


def read_hashes(printed: str) -> dict[str, Output]:
    """One JSON object a line; those of absent files say `missing`. Raises ContractError."""
    found: dict[str, Output] = {}
    for line in printed.splitlines():
        try:
            absent = bool(line.strip()) and json.loads(line).get("missing")
        except (ValueError, AttributeError, RecursionError) as error:
            raise ContractError(f"no JSON object: {error}") from error
        if line.strip() and not absent:
            output = contract.load(Output, line)
            found[output.path] = output
    return found
