"""Files of a machine that was not rented by us: it has our key and nothing else of ours, and is only read.

Its host key cannot be proven by a secret that the market carried, so a person compares the fingerprint, once; after
that it is pinned like any other.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from pathlib import Path, PurePosixPath

import asyncssh

import remote_payload
from daemon.box.address import BoxAddress
from daemon.box.contact import HASH_S, Contact
from daemon.box.download import Download, placed
from daemon.box.link import CONNECT_TIMEOUT_S, HOST_KEY_ALGS, translated
from daemon.box.progress import Follow
from daemon.errors import LinkLost, RemoteFailed, TransferFailed
from remote_payload import contract
from remote_payload.contract import CHUNK_SIZE, ArtifactFile, ContractError, Manifest, Role

_SCRIPT = "chunks.py"


class _Nothing:
    """No record: what an earlier run left is claimed by its content, and proven before it counts."""

    def load(self, path: str, sha256: str, size: int, chunk_size: int) -> bytes:
        return b""

    def record(self, path: str, bitmap: bytes, *, complete: bool, resent: int, bad: int) -> None:
        return None


async def shown_key(address: BoxAddress) -> tuple[str, str]:
    """The host key that the machine shows, as an OpenSSH line, and its SHA256 fingerprint. Raises LinkLost."""
    failure: LinkLost | None = None
    for host, port in address.endpoints:
        try:
            with translated(f"instance {address.instance_id}: ssh to {host}:{port}"):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    key = await asyncssh.get_server_host_key(
                        host, port, config=None, server_host_key_algs=HOST_KEY_ALGS
                    )
        except LinkLost as error:
            failure = error
            continue
        if key is not None:
            return " ".join(key.export_public_key("openssh").decode().split()[:2]), key.get_fingerprint()
    raise failure or LinkLost(f"instance {address.instance_id}: no address shows an ed25519 host key")


async def describe(contact: Contact, pattern: str) -> tuple[Manifest, PurePosixPath]:
    """The files that `pattern` means there, and the folder that holds them all. Paths are without the leading slash.

    Raises TransferFailed when there are none, when one is being written, or when the answer cannot be trusted.
    """
    source = (Path(remote_payload.__file__).parent / _SCRIPT).read_text()
    command = shlex.join([contact.address.python, "-c", source, pattern])
    link = await contact.link()
    reply = await link.call(command, timeout_s=HASH_S, limit=contract.MAX_JSON_BYTES)
    if reply.code != 0:
        said = (reply.complaint.strip() or "it said nothing").splitlines()[-1]
        raise RemoteFailed(f"{contact.name}: {pattern}: {said}", exit_code_remote=reply.code)
    try:
        found = [_file(line) for line in reply.output.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise TransferFailed(f"{contact.name}: its answer about {pattern} cannot be read: {error}") from error
    if not found:
        raise TransferFailed(
            f"{contact.name}: no file there is {pattern}",
            hint="quote the pattern: 'out/*.gguf'; all of a folder is 'out/**'",
        )
    top = PurePosixPath(os.path.commonpath([str(PurePosixPath(file.path).parent) for file in found]))
    return Manifest("", 1, "", 0.0, CHUNK_SIZE, found), top


def _file(line: str) -> ArtifactFile:
    raw = json.loads(line)
    if not raw["whole"]:
        raise TransferFailed(f"{raw['path']} is being written", hint="again when it is finished")
    chunks = [str(chunk) for chunk in raw["chunks"]]
    return ArtifactFile(str(raw["path"]).removeprefix("/"), Role.REPORT, int(raw["size"]), str(raw["sha256"]), chunks)


async def fetch(
    contact: Contact,
    manifest: Manifest,
    top: PurePosixPath,
    folder: Path,
    follow: Follow,
    patience_s: float,
) -> list[Path]:
    """Bring the described files into `folder`, named by their paths below `top`. Raises as Box.download."""
    try:
        home = placed(manifest, top)
    except ContractError as error:
        raise TransferFailed(f"{contact.name}: {error}", hint="rename it there, or give a narrower --path") from error
    await Download(manifest, "", folder, _Nothing(), follow, contact.dial, patience_s, top=top).run()
    return [folder / name for name in home.values()]
