"""The line of `jobctl doctor` about being told: whether a message can arrive. Nothing is sent."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

from daemon.api.messages import Check
from daemon.cli.verdicts import failed, passed, warned
from daemon.settings import Settings

REACHED_S = 5.0
PORTS = {"http": 80, "https": 443}
SET = 'set notify_url = "https://ntfy.sh/YOUR-TOPIC" in config.toml'


def told(loaded: Settings) -> Sequence[Check]:
    from daemon.notify import desktop_command

    command = desktop_command(sys.platform, "", "")[0]
    desktop = shutil.which(command) is not None
    if loaded.notify_url is None and not desktop:
        return [warned("messages", f"no {command} here and no notify_url: you are told nothing", SET)]
    if loaded.notify_url is None:
        return [warned("messages", "on this desktop only: nothing reaches you when you are away", SET)]
    mend = "mend notify_url in config.toml, then: jobctl notify test"
    try:
        address = urlsplit(loaded.notify_url)  # itself a secret: only its host is said
    except ValueError:  # which the line says
        return [failed("messages", "notify_url is no address", mend)]
    try:
        port = address.port or PORTS.get(address.scheme, 0)
        socket.create_connection((address.hostname or "", port), REACHED_S).close()
    except (OSError, ValueError) as error:
        detail = f"{address.hostname} of notify_url does not answer ({type(error).__name__})"
        return [failed("messages", detail, mend)]
    return [passed("messages", f"to {address.hostname}{' and this desktop' if desktop else ''}")]
