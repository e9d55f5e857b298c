"""One daemon per database: the OS lock, held for this process's life, then the leader's epoch (store/leader.py)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from daemon import platform
from daemon.errors import Refused


def hold_lock(path: Path) -> IO[str]:
    """The lock file, open and locked; keep it until the process ends. Raises Refused when another daemon has it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115 - open for the process's life
    if not platform.lock_file(file):
        holder = platform.lock_holder(file)
        file.close()
        raise Refused(f"another jobd (pid {holder}) uses {path.parent}", hint="jobctl down")
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
