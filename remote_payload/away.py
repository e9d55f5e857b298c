"""What the box does on its own when its stages are over: tell the owner, and stop the machine if nobody comes.

It can stop its own instance and nothing more; stopping keeps the disk. The scoped key is the market's, given to every
container; it is never printed. Both addresses called here come from the owner or the market (ruff: S310).
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from remote_payload.contract import JobFile
from remote_payload.layout import Layout
from remote_payload.progress import Events

MARKET = "https://console.vast.ai"
REQUEST_TIMEOUT_S = 20.0
RETRY_S = 60.0  # between attempts to stop; the meter runs until one succeeds
POLL_S = 15.0
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


def tell(job: JobFile, events: Events, text: str) -> None:
    """POST one line of text to the address the owner chose. A failure is noted and changes nothing else."""
    if not job.notify_url:
        return
    request = urllib.request.Request(job.notify_url, data=text.encode(), headers=PLAIN)  # noqa: S310
    try:
        urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S).close()  # noqa: S310
    except (OSError, ValueError) as error:
        events.emit("warn", msg=f"notification not delivered: {type(error).__name__}")


def wait_for_home(layout: Layout, limit_s: float, events: Events, over: Callable[[], bool]) -> None:
    """Stop the instance once nobody has called for `limit_s`; return when that is done, or when `over` says so."""
    while not over():
        if time.time() - layout.called.stat().st_mtime < limit_s:
            time.sleep(min(POLL_S, limit_s / 4))
        elif _stop_instance(events):
            return
        else:
            time.sleep(min(RETRY_S, limit_s))


def _stop_instance(events: Events) -> bool:
    """Ask the market to stop this instance. True when it agreed, or when there is no instance to stop."""
    environment = container_environment()
    instance, key = environment.get("CONTAINER_ID"), environment.get("CONTAINER_API_KEY")
    if not instance or not key:
        events.emit("warn", msg="nobody called, and this container has no key to stop itself with")
        return True
    url = f"{environment.get('VAST_URL') or MARKET}/api/v0/instances/{int(instance)}/"
    request = urllib.request.Request(  # noqa: S310
        url,
        method="PUT",
        data=json.dumps({"state": "stopped"}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    events.emit("away", msg="nobody called; stopping this instance, its disk is kept")
    try:
        urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        events.emit("warn", msg=f"the market refused to stop this instance: {error.code}")
        return False
    except OSError as error:
        events.emit("warn", msg=f"the market was not reached: {type(error).__name__}")
        return False
    return True


def container_environment(own: Mapping[str, str] = os.environ, init: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """This process's environment, completed from the container's first process: ssh logins do not inherit that."""
    found: dict[str, str] = {}
    if "CONTAINER_API_KEY" not in own and os.access(init, os.R_OK):
        pairs = (pair.partition("=") for pair in init.read_bytes().decode(errors="replace").split("\0") if pair)
        found = {name: value for name, _, value in pairs}
    return found | dict(own)
