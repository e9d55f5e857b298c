"""What systemd wants to hear of a service: ready, alive, what it is at. The protocol of sd_notify(3)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import structlog

from daemon import platform

log = structlog.get_logger()

Tell = Callable[..., None]


def teller(env: Mapping[str, str] = os.environ) -> Tell:
    """`tell("READY=1", "STATUS=2 jobs")`; says nothing where nobody listens. It never blocks and never raises."""
    address = env.get("NOTIFY_SOCKET", "")
    if not address:
        return lambda *assignments: None
    target = "\0" + address[1:] if address.startswith("@") else address  # @: Linux's abstract names

    def tell(*assignments: str) -> None:
        try:
            with platform.notify_socket() as out:
                out.sendto("\n".join(assignments).encode(), target)
        except OSError as error:  # systemd restarts or is busy; the next beat comes in two seconds
            log.info("service.unheard", error=str(error))

    return tell
