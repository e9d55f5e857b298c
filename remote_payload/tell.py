"""Tells the owner, at the address that they chose, what became of the job while their own computer may be asleep."""

from __future__ import annotations

import http.client
import urllib.request

from remote_payload.contract import JobFile
from remote_payload.progress import Events

REQUEST_TIMEOUT_S = 20.0
PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


def tell(job: JobFile, events: Events, text: str) -> None:
    """POST one line of text to the address the owner chose. A failure is noted and changes nothing else."""
    if not job.notify_url:
        return
    request = urllib.request.Request(job.notify_url, data=text.encode(), headers=PLAIN)  # noqa: S310 - the owner's own
    try:
        urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S).close()  # noqa: S310
    except (OSError, ValueError, http.client.HTTPException) as error:
        events.emit("warn", msg=f"notification not delivered: {type(error).__name__}")
