"""What the background service runs, and with which environment: the same on every system.

Secrets given by the environment when the service is set up go into a file of mode 0600 that `jobd` reads at its start;
the unit, agent or task names that file and holds nothing else.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemon import platform
from daemon.errors import Refused
from daemon.settings import Paths

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")  # may hold a password
# Variables that the daemon reads and that a service started at log-in would not have.
CARRIED = (
    *("HOMEPORT_HOME", "VAST_URL", "VAST_API_KEY", "HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "WANDB_API_KEY"),
    *("XDG_CONFIG_HOME", "XDG_STATE_HOME"),  # where it finds itself
    *PROXIES,
    *("NO_PROXY", "no_proxy", "SSL_CERT_FILE"),
)


@dataclass(frozen=True)
class Program:
    """`name` is the service's; `log` gets what a system without a journal would lose."""

    name: str
    command: tuple[str, ...]
    environment_file: Path
    log: Path


def of(paths: Paths, env: Mapping[str, str] = os.environ) -> Program:
    """The program of this installation. Each HOMEPORT_HOME has a service of its own."""
    home = env.get("HOMEPORT_HOME")
    suffix = f"-{hashlib.sha256(os.fsencode(paths.state)).hexdigest()[:8]}" if home else ""
    file = paths.environment_file
    # -P: a folder named `daemon` where the service happens to start is not ours.
    command = (sys.executable, "-P", "-m", "daemon.app", "--env-file", str(file))
    return Program(f"homeport{suffix}", command, file, paths.state / "service.out")


def write_environment(program: Program, env: Mapping[str, str] = os.environ) -> bool:
    """Keep what is set now of CARRIED; whether that changed anything. Raises Refused for a value of several lines."""
    kept = {name: env[name] for name in CARRIED if env.get(name)}
    if broken := [name for name, value in kept.items() if "\n" in value or "\r" in value]:
        raise Refused(f"{broken[0]} has more than one line", hint=f"export {broken[0]}=...")
    if "HOMEPORT_HOME" in kept:
        kept["HOMEPORT_HOME"] = str(Path(kept["HOMEPORT_HOME"]).expanduser().absolute())
    file, text = program.environment_file, "".join(f"{name}={value}\n" for name, value in kept.items())
    if file.exists() and platform.open_to_others(file):
        file.unlink()
    return write(file, text)


def write(file: Path, text: str) -> bool:
    """Make `file` hold `text`, whole or not at all, for this user alone; whether that changed it."""
    if file.exists() and file.read_text(encoding="utf-8", errors="replace") == text:
        return False
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = file.with_suffix(".new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        platform.sync_file(out.fileno())
    beside.replace(file)
    return True


def dropped(program: Program, env: Mapping[str, str] = os.environ) -> list[str]:
    """What an earlier `up` kept, and `write_environment` will not: it is not set any more."""
    file = program.environment_file
    kept = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []
    return [name for name in CARRIED if not env.get(name) and any(line.startswith(f"{name}=") for line in kept)]


def read_environment(file: Path) -> dict[str, str]:
    """What `write_environment` kept. Raises Refused when others could read it or a line is not ours."""
    try:
        text, exposed = file.read_text(encoding="utf-8"), platform.open_to_others(file)
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}", hint="jobctl up") from error
    if exposed:
        raise Refused(f"{file} can be read by others", hint=f"chmod 600 {shlex.quote(str(file))}")
    pairs = [line.partition("=") for line in text.split("\n") if line]
    if unknown := [number for number, (name, _, _) in enumerate(pairs, 1) if name not in CARRIED]:
        raise Refused(f"{file}:{unknown[0]}: not one of {', '.join(CARRIED)}", hint="jobctl up")
    return {name: value for name, _, value in pairs}
