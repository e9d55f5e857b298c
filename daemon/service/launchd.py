"""macOS: a LaunchAgent of the user's graphical log-in. Follows launchd.plist(5); not run by us."""

from __future__ import annotations

import plistlib
import shlex
from pathlib import Path

from daemon import platform
from daemon.service.program import Program
from daemon.service.system import Standing, ask

NAME = "launchd agent"
THROTTLE_S = 30  # a daemon that ends at once is not started in a tight loop
NO_SUCH_SERVICE = (0, 3, 113)  # of bootout and print: it was not loaded


def file(program: Program) -> Path:
    return Path.home() / "Library" / "LaunchAgents" / f"{program.name}.plist"


def render(program: Program) -> str:
    agent = {
        "Label": program.name,
        "ProgramArguments": list(program.command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": THROTTLE_S,
        "ProcessType": "Background",
        "Umask": 0o077,
        "StandardOutPath": str(program.log),
        "StandardErrorPath": str(program.log),
    }
    return plistlib.dumps(agent).decode()


def install(program: Program) -> None:
    """A changed agent is read only when it is loaded anew."""
    ask("launchctl", "enable", _target(program))
    ask("launchctl", "bootout", _target(program), accept=NO_SUCH_SERVICE)
    ask("launchctl", "bootstrap", _domain(), str(file(program)))


def start(program: Program) -> None:
    ask("launchctl", "kickstart", "-k", _target(program))


def stop(program: Program) -> None:
    if file(program).exists():
        ask("launchctl", "disable", _target(program))
        ask("launchctl", "bootout", _target(program), accept=NO_SUCH_SERVICE)


def forget(program: Program) -> None:
    """launchd keeps nothing of an agent that is not loaded."""


def standing(program: Program) -> Standing:
    said = ask("launchctl", "print", _target(program), accept=NO_SUCH_SERVICE)
    there = file(program).exists()
    disabled = f'"{program.name}" => disabled' in ask("launchctl", "print-disabled", _domain())
    return Standing(installed=there, starts_alone=there and not disabled, running="state = running" in said)


def log_command(program: Program) -> str:
    return f"tail {shlex.quote(str(program.log))}"


def _domain() -> str:
    return f"gui/{platform.user_id()}"


def _target(program: Program) -> str:
    return f"{_domain()}/{program.name}"
