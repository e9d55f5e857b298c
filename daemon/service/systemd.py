"""Linux: a systemd user unit. It needs no root, has the user's keys and desktop, and is watched by systemd."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from daemon import platform
from daemon.service.program import Program
from daemon.service.system import Advice, Standing, ask

NAME = "systemd user unit"

# Only what works without root and does not come between the daemon and SSH, the models folder or its child processes:
# no mount namespace, no address families, no executable-memory rule (llama.cpp's bindings make closures).
UNIT = """\
[Unit]
Description=homeport: brings trained models home from rented machines
# It never gives up: a full disk ends every start, and is over some day, while what is rented bills on.
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
# The first look at the market comes before READY, and the market may be slow.
TimeoutStartSec=300
WatchdogSec=60
Restart=on-failure
RestartSec=15
# 5: the market refuses the key. Only a person can mend that.
RestartPreventExitStatus=5
TimeoutStopSec=30
KillMode=mixed
# A verifier that runs out of memory must not take the daemon along.
OOMPolicy=continue
UMask=0077
SyslogIdentifier={name}
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""
LINGERING = Path("/var/lib/systemd/linger")  # has a file for each user whose services outlive the log-out
LAST_LOGOUT = "255"  # systemd 255 may kill a lingering user manager at the last log-out


def file(program: Program) -> Path:
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return config / "systemd" / "user" / _unit(program)


def render(program: Program) -> str:
    return UNIT.format(command=" ".join(map(_quoted, program.command)), name=program.name)


def install(program: Program) -> None:
    _systemctl("daemon-reload")
    _systemctl("enable", _unit(program))


def start(program: Program) -> None:
    _systemctl("reset-failed", _unit(program), accept=(0, 1))  # the failures before are over
    _systemctl("restart", "--no-block", _unit(program))  # whoever waits for READY sees failures by `standing`


def stop(program: Program) -> None:
    if file(program).exists():
        _systemctl("disable", "--now", _unit(program))


def forget(program: Program) -> None:
    _systemctl("daemon-reload")


def standing(program: Program) -> Standing:
    state = _systemctl("is-active", _unit(program), accept=(0, 3, 4))
    enabled = _systemctl("is-enabled", _unit(program), accept=(0, 1, 4))
    return Standing(
        installed=file(program).exists(),
        starts_alone=enabled == "enabled",
        running=state in ("active", "activating", "reloading"),
        advice=_advice(),
    )


def log_command(program: Program) -> str:
    return f"journalctl --user -u {program.name}"


def _advice() -> tuple[Advice, ...]:
    user = platform.user_name()
    advice = []
    if not (LINGERING / user).exists():
        advice.append(Advice("it ends when you log out", f"loginctl enable-linger {user}"))
    if _systemctl("--version").split()[1:2] == [LAST_LOGOUT]:
        advice.append(Advice("systemd 255 may end it at your last log-out even so; it goes on at the next log-in"))
    return tuple(advice)


def _unit(program: Program) -> str:
    return f"{program.name}.service"


def _quoted(word: str) -> str:
    """As systemd reads it: % and $ are its own, quotes are like the shell's."""
    return shlex.quote(word.replace("%", "%%").replace("$", "$$"))


def _systemctl(*words: str, accept: tuple[int, ...] = (0,)) -> str:
    return ask("systemctl", "--user", *words, accept=accept)
