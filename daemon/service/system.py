"""Which service manager this computer has, and what all of them can do."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemon.errors import Refused
from daemon.service.program import Program, write

PATIENCE_S = 60.0  # of one command of the service manager; ending the daemon takes some seconds


@dataclass(frozen=True)
class Advice:
    """What may end the service although nothing is wrong with it; `fix` is the command that helps, '' for none."""

    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Standing:
    """`starts_alone`: at the next log-in without anybody typing. `advice`: what would make it more reliable."""

    installed: bool
    starts_alone: bool
    running: bool
    advice: tuple[Advice, ...] = ()


class System(Protocol):
    """A service manager: one module each. Every function but `render` and `file` may raise Refused, with its words."""

    NAME: str

    def file(self, program: Program) -> Path:
        """Where the unit, agent or task is kept."""
        ...

    def render(self, program: Program) -> str: ...

    def install(self, program: Program) -> None:
        """Register what lies in `file`, started at each log-in from now on. May be called again."""
        ...

    def start(self, program: Program) -> None:
        """Start it, or start it anew when it runs."""
        ...

    def stop(self, program: Program) -> None:
        """Stop it now and at every log-in. Nothing to stop is no error."""
        ...

    def forget(self, program: Program) -> None:
        """Called when `file` is gone."""
        ...

    def standing(self, program: Program) -> Standing: ...

    def log_command(self, program: Program) -> str:
        """What a person types to read what the daemon printed."""
        ...


def this_system() -> System:
    """The service manager of this computer. Raises Refused where we know none."""
    from daemon.service import launchd, systemd, task_scheduler

    systems: dict[str, System] = {"linux": systemd, "darwin": launchd, "win32": task_scheduler}
    if sys.platform not in systems:
        raise Refused(f"no background service for {sys.platform}", hint="jobctl serve")
    return systems[sys.platform]


def put(system: System, program: Program) -> bool:
    """Write the service's file and register it; whether it changed."""
    changed = write(system.file(program), system.render(program))
    system.install(program)
    return changed


def remove(system: System, program: Program) -> None:
    """Stop and forget the service. Models, receipts, database and keys stay."""
    system.stop(program)
    for file in (system.file(program), program.environment_file):
        file.unlink(missing_ok=True)
    system.forget(program)


def ask(*command: str, accept: tuple[int, ...] = (0,)) -> str:
    """What a command of the service manager says. Raises Refused with its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{command[0]}: {error}", hint="jobctl serve") from error
    if done.returncode not in accept:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"ended with {done.returncode}"]
        raise Refused(f"{' '.join(command)}: {said[0]}", hint="jobctl serve")
    return done.stdout.strip()
