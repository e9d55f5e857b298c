"""Who leads the installation now: whoever holds its lock file, which names its process."""

from __future__ import annotations

from daemon import platform
from daemon.settings import Paths


def holder(paths: Paths) -> str | None:
    """The process id in the lock file while somebody holds it; None when nobody does."""
    if not paths.lock.exists():
        return None
    with open(paths.lock, "r+", encoding="utf-8", errors="replace") as file:
        if platform.lock_file(file):
            return None  # given back by closing
        return platform.lock_holder(file)
