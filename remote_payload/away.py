"""Stops this machine when nothing works on it and nobody calls: `python away.py ROOT LIMIT_S`.

Runs from the container's start on. The start script carries this very file, before anything is uploaded, so it is whole
in itself and short: the market takes 4096 characters. It can stop its own instance, which keeps the disk, and nothing
more. The key is the market's, given to each container for itself, and never printed. Before it stops, it tells the
owner twice, at the address in job.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import sys
import time
import urllib.request
from pathlib import Path

MARKET = "https://console.vast.ai"
SIGNS = ("called", "status.json", "events.jsonl")  # of a caller, of a runner that beats, of a stage that outlived it
LOOK_S = 15.0
AGAIN_S = 600.0  # after the market's yes; where this still runs then, it did not do what it said
REQUEST_TIMEOUT_S = 20.0
TOLD = (  # after which share of the silence, and what
    (0.5, "waiting for home: its work has ended and nobody has called for {quiet:.0f} minutes. Next: jobctl up"),
    (0.9, "stopping soon: in {left:.0f} minutes this machine stops itself and keeps its disk. Next: jobctl up"),
)


def watch(root: Path, limit_s: float) -> None:
    """Until this machine is stopped, and this with it. Returns at once when another watch lives."""
    run = root / "run"
    run.mkdir(parents=True, exist_ok=True)
    with open(run / "away.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the other one
            return
        seen, since, told = signs(run), time.monotonic(), 0
        while True:
            allowed_s = allowed(run, limit_s)
            look_s = min(LOOK_S, allowed_s / 8)
            silence_s = allowed_s - 2 * look_s  # one look late, and what passed before the first or until it is off
            time.sleep(look_s)
            quiet_s = time.monotonic() - since
            now = signs(run)
            if any(seen.get(name) != at for name, at in now.items()):
                seen, since, told = seen | now, time.monotonic(), 0
            elif quiet_s >= silence_s and stop_instance():
                time.sleep(AGAIN_S)
            elif told < len(TOLD) and quiet_s >= TOLD[told][0] * silence_s:
                tell(run, TOLD[told][1].format(quiet=quiet_s / 60, left=max(0, silence_s - quiet_s) / 60))
                told += 1


def allowed(run: Path, limit_s: float) -> float:
    """Seconds of silence that the last caller allowed: the price may be another than at the container's start."""
    try:
        return float((run / "called").read_text())
    except (OSError, ValueError):  # nobody has called yet, or who did says nothing of it
        return limit_s


def signs(run: Path) -> dict[str, int]:
    """By name, the same as long as there is silence. No clock is asked: it may be set meanwhile."""
    found = {}
    for name in SIGNS:
        with contextlib.suppress(OSError):  # not there, or on a disk that fails: it says nothing
            found[name] = (run / name).stat().st_mtime_ns
    return found


def stop_instance() -> bool:
    """Ask the market to stop this instance. True when it agreed, or when there is no key to ask with."""
    own = container_environment()
    instance, key = own.get("CONTAINER_ID"), own.get("CONTAINER_API_KEY")
    if not instance or not key:
        say("nobody calls, and this container has no key to stop itself with")
        return True
    say("nobody calls; stopping this instance, its disk is kept")
    request = urllib.request.Request(  # noqa: S310 - the market's address
        f"{own.get('VAST_URL') or MARKET}/api/v0/instances/{int(instance)}/",
        method="PUT",
        data=json.dumps({"state": "stopped"}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as reply:  # noqa: S310
            if json.load(reply).get("success", True):
                return True
            say("the market did not agree")  # a 200 may say so too
    except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
        say(f"the market did not agree: {error}")
    return False


def tell(run: Path, text: str) -> None:
    """POST one line to the owner's address, if a job with one is here. Whether it arrives changes nothing."""
    try:
        if not (run / "job.json").exists():
            return
        job = json.loads((run / "job.json").read_text())
        if job["notify_url"]:
            line = f"homeport {job['name']} ({job['job']}): {text}"
            text_plain = {"Content-Type": "text/plain; charset=utf-8"}
            request = urllib.request.Request(job["notify_url"], line.encode(), text_plain)  # noqa: S310
            urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S).close()  # noqa: S310
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        say(f"the owner was not told: {type(error).__name__}")


def container_environment(init: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """This process's environment, completed from the container's first process: not every shell inherits that."""
    found: dict[str, str] = {}
    if "CONTAINER_API_KEY" not in os.environ:
        try:
            text = init.read_bytes().decode(errors="replace")
        except OSError as error:  # our own has to do
            say(f"the container's environment cannot be read: {error}")
            text = ""
        found = {name: value for name, _, value in (pair.partition("=") for pair in text.split("\0") if pair)}
    return found | dict(os.environ)


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log may lie on a full disk, and the machine is stopped all the same
        print("away:", text, flush=True)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), float(sys.argv[2]))
