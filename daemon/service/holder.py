"""Who leads the installation now: whoever holds its lock file, which names its process and is as old as that."""

from __future__ import annotations

import contextlib
from pathlib import Path

from daemon import platform
from daemon.errors import CredentialsRefused, Refused
from daemon.settings import Paths, api_key


def holder(paths: Paths) -> str | None:
    """The process id in the lock file while somebody holds it; None when nobody does."""
    if not paths.lock.exists():
        return None
    with open(paths.lock, "r+", encoding="utf-8", errors="replace") as file:
        if platform.lock_file(file):
            return None  # given back by closing
        return platform.lock_holder(file)


def refuse_running(paths: Paths, again: str) -> None:
    """Raises Refused while a daemon leads: it has to end before `again` is typed."""
    if (process := holder(paths)) is not None:
        raise Refused(
            f"a daemon runs here (process {process}), and has to end first", hint=f"jobctl down, then {again}"
        )


def unread(paths: Paths) -> list[Path]:
    """What a daemon reads once, at its start, and who began last did not read: settings and key written since then."""
    if not paths.lock.exists():
        return []
    began = paths.lock.stat().st_mtime
    files = [paths.config_file, paths.environment_file, paths.key_file]
    with contextlib.suppress(CredentialsRefused):  # there is no key: then none was written
        files.append(Path(api_key(paths).source))  # the market's own file, or a variable, which is no file
    return [file for file in dict.fromkeys(files) if file.is_file() and file.stat().st_mtime > began]
