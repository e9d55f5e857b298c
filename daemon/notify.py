"""Tell the person: on the desktop, and at one URL of their choice (ntfy or any webhook). Never in the way."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable

import httpx
import structlog

from daemon.settings import Settings

log = structlog.get_logger()
LIMIT_S = 2.0  # a desktop without a notification service may hang

Notify = Callable[[str, str], Awaitable[None]]


def sender(settings: Settings) -> Notify:
    """A function that sends (title, text); what cannot be delivered is logged."""

    async def send(title: str, text: str) -> None:
        await asyncio.gather(_desktop(title, text), _post(settings.notify_url, title, text))

    return send


async def _desktop(title: str, text: str) -> None:
    if sys.platform == "darwin":
        script = "on run {t, m}\ndisplay notification m with title t\nend run"
        command = ["osascript", "-e", script, title, text]
    else:
        command = ["notify-send", "--app-name=homeport", title, text]
    if shutil.which(command[0]) is None:
        return
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await asyncio.wait_for(process.wait(), LIMIT_S)
    except TimeoutError:
        process.kill()
        log.info("notify.desktop_hung")


async def _post(url: str | None, title: str, text: str) -> None:
    if url is None:
        return
    try:
        async with httpx.AsyncClient(timeout=10) as client:
            await client.post(
                url, content=f"{title}\n{text}".encode(), headers={"Title": title.encode("ascii", "replace").decode()}
            )
    except httpx.HTTPError as error:
        log.info("notify.undelivered", error=type(error).__name__)
