"""Our own SSH key: one for the installation, never the user's."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh


def own_key(path: Path) -> str:
    """The public line of the ed25519 key at `path`, made (0600) when there is none. May be called any number of times.

    Raises OSError when it cannot be read or written, asyncssh.KeyImportError when the file is no private key.
    """
    if not path.exists():
        _make(path)
    return asyncssh.read_private_key(path).export_public_key("openssh").decode().strip()


def _make(path: Path) -> None:
    """Appears whole or not at all, and never over an existing key: every rented box knows only that one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = asyncssh.generate_private_key("ssh-ed25519", comment="homeport")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.export_private_key("openssh"))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(beside, path)
    except FileExistsError:
        pass  # another process was faster; its key is as good
    finally:
        beside.unlink()
