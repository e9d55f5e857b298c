"""The lines of `jobctl doctor` about the background service."""

from __future__ import annotations

from importlib.metadata import version

from daemon.api.client import Client
from daemon.api.messages import Check
from daemon.errors import HomeportError
from daemon.service import program as programs
from daemon.service.system import this_system
from daemon.settings import Settings


def service(loaded: Settings) -> list[Check]:
    """Installed, starting by itself, and of the same version as this command."""
    try:
        system, program = this_system(), programs.of(loaded.paths)
        standing = system.standing(program)
    except HomeportError as error:  # a computer without a service manager is no fault
        return [Check(name="service", status="SKIP", detail=error.message, fix="")]
    if not standing.installed:
        detail = "not installed: after a log-out or a reboot nobody watches what is rented"
        return [Check(name="service", status="WARN", detail=detail, fix="jobctl up")]
    if not (standing.starts_alone and standing.running):
        detail = "does not start at log-in" if not standing.starts_alone else "installed, but not running"
        return [Check(name="service", status="WARN", detail=detail, fix="jobctl up"), *_version(loaded)]
    found = [Check(name="service", status="PASS", detail=f"{system.NAME}, running, started at log-in", fix="")]
    for advice in standing.advice:
        found.append(Check(name="log-out", status="WARN", detail=advice.detail, fix=advice.fix))
    return [*found, *_version(loaded)]


def _version(loaded: Settings) -> list[Check]:
    """An upgraded command with an old daemon, as after `pip install -U`."""
    ours = version("homeport")
    try:
        theirs = Client(loaded.paths).health()["version"]
    except HomeportError:
        return []  # the daemon's own line says that it does not answer
    if theirs != ours:
        detail = f"the daemon is of version {theirs}, this command of {ours}"
        return [Check(name="version", status="WARN", detail=detail, fix="jobctl up")]
    return [Check(name="version", status="PASS", detail=f"daemon and command are both {ours}", fix="")]
