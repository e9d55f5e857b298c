"""Every reader of what a rented machine or the market sends: bytes in, a value or one of its own errors out.

A target is called with any bytes at all. Whatever else it raises is a defect: it would end an actor or a pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from daemon.artifacts import card, gguf, receipt
from daemon.box.box import BoxStatus, read_preflight
from daemon.box.command import unframed
from daemon.box.contact import read_hashes
from daemon.box.download import placed
from daemon.box.lines import clean_line, whole_lines
from daemon.control import watch
from daemon.errors import HomeportError
from daemon.market import wire
from remote_payload import contract
from remote_payload.contract import ContractError


@dataclass(frozen=True)
class Target:
    read: Callable[[bytes], Any]
    refuses: tuple[type[Exception], ...] = ()


def of_contract(kind: type) -> Target:
    """What is read is stored and read again later: it has to survive both."""

    def read(content: bytes) -> None:
        value = contract.load(kind, content)
        assert contract.load(kind, contract.dump(value).encode()) == value

    return Target(read, (ContractError,))


def _gguf(content: bytes) -> None:
    """The parser reads a file, so it gets one; then everything it promised is used."""
    fd, name = tempfile.mkstemp(dir=_memory)
    try:
        os.write(fd, content)
        os.close(fd)
        found = gguf.read(Path(name))
        assert found.size == len(content)
        for tensor in found.tensors:
            assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(content)
        assert isinstance(found.architecture, str)
    finally:
        Path(name).unlink()


_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: PTH112 - a path for tempfile


def _manifest(content: bytes) -> None:
    """No name leads out of run/out, and no two files lie in one place."""
    found = placed(contract.load(contract.Manifest, content))
    for path in found.values():
        assert isinstance(path, PurePosixPath) and not path.is_absolute() and ".." not in path.parts
    assert len({str(path).casefold() for path in found.values()}) == len(found)


def _path(content: bytes) -> None:
    path = contract.checked_path(content.decode("utf-8", "surrogateescape"))
    assert not path.is_absolute() and ".." not in path.parts


def _checkpoint(content: bytes) -> None:
    for file in contract.load(contract.Checkpoint, content).files:
        contract.checked_path(file.path)


def _event(content: bytes) -> None:
    """What is a step has to fit into its table, where SQLite holds 64 bits."""
    event = watch._event(content)
    if event is not None and event.get("kind") == "step":
        for key in ("step", "total", "tokens", "loss", "lr", "tok_s"):
            value = event.get(key)
            assert not isinstance(value, int) or abs(value) < 1 << 63


def _log(content: bytes) -> None:
    for line in whole_lines(content, 1 << 20).decode("utf-8", "replace").splitlines():
        cleaned = clean_line(line)
        assert "\x1b" not in cleaned and "\n" not in cleaned and "\r" not in cleaned
        assert not any(ord(char) < 32 and char != "\t" for char in cleaned)


def _framed(content: bytes) -> None:
    """Only what stands between two lines with the mark is a reply."""
    mark = "homeport-" + hashlib.sha256(b"mark").hexdigest()[:32]
    unframed(content, content[-100:], mark)
    unframed(f"{mark} begin\n".encode() + content + f"\n{mark} end 0\n".encode(), b"", mark)


def _market(content: bytes) -> None:
    """A listing, an offer, an account, a charge: each is read or refused."""
    reply = wire.answer(200, content.decode("utf-8", "replace"), {})
    wire.failure("x", reply)
    raw = reply.json or {}
    readers = (wire.read_instances, wire.read_offers, wire.read_shown, wire.read_account, wire.read_charges)
    for read in (*readers, wire.read_instance, wire.read_offer):
        try:
            read(raw)  # type: ignore[arg-type]
        except wire.Unreadable:
            continue
    for wait in (reply.body[:40], "1e400", "-1"):
        wire.retry_after_s(wire.answer(429, reply.body, {"retry-after": wait}), 0.0)


def _card(content: bytes) -> None:
    """Tokenizer files come from the box and decide what stands in the Modelfile."""
    found = card.json_object(content)
    json.dumps(found)


TARGETS: dict[str, Target] = {
    "gguf": Target(_gguf, (gguf.GgufError,)),
    "manifest": Target(_manifest, (ContractError,)),
    "path": Target(_path, (ContractError,)),
    "checkpoint": Target(_checkpoint, (ContractError,)),
    "job": of_contract(contract.JobFile),
    "prepared": of_contract(contract.Prepared),
    "status": of_contract(contract.Status),
    "box-status": of_contract(BoxStatus),
    "done": of_contract(contract.Done),
    "failed": of_contract(contract.Failed),
    "receipt": Target(lambda content: receipt.load(content.decode("utf-8", "replace")), (ContractError,)),
    "preflight": Target(lambda content: read_preflight(content.decode("utf-8", "replace")), (ContractError,)),
    "hashes": Target(lambda content: read_hashes(content.decode("utf-8", "replace")), (ContractError,)),
    "event": Target(_event),
    "log": Target(_log),
    "framed": Target(_framed),
    "card": Target(_card),
    "market": Target(_market, (HomeportError,)),
}


def feed(name: str, content: bytes) -> None:
    """Raises what the target raises beyond its own errors."""
    target = TARGETS[name]
    try:
        target.read(content)
    except target.refuses:
        return
