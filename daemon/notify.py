"""Tell the person: on the desktop, and at one URL of their choice (ntfy or any webhook). Never in the way."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx
import structlog

from daemon import web
from daemon.errors import HomeportError
from daemon.settings import Settings

log = structlog.get_logger()
DESKTOP_S = 2.0  # a desktop without a notification service may hang
POST_S = 10.0

Notify = Callable[[str, str, bool], Awaitable[bool]]

_MACOS = "on run {t, m}\ndisplay notification m with title t\nend run"
# Title and text come in the environment, where PowerShell takes nothing in them for code. Not run by us.
_WINDOWS = """
$kind = [Windows.UI.Notifications.ToastNotificationManager, Windows.UI.Notifications, ContentType = WindowsRuntime]
$page = $kind::GetTemplateContent([Windows.UI.Notifications.ToastTemplateType]::ToastText02)
$texts = $page.GetElementsByTagName('text')
$null = $texts.Item(0).AppendChild($page.CreateTextNode($env:HOMEPORT_TITLE))
$null = $texts.Item(1).AppendChild($page.CreateTextNode($env:HOMEPORT_TEXT))
$toast = [Windows.UI.Notifications.ToastNotification, Windows.UI.Notifications, ContentType = WindowsRuntime]
$kind::CreateToastNotifier('homeport').Show($toast::new($page))
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one message on one channel; `detail` says how, or why not. `present`: there is such a channel."""

    channel: str
    delivered: bool
    detail: str
    present: bool = True


def sender(settings: Settings) -> Notify:
    """A function that sends (title, text, whether it is a second try). True once nothing more is to be done.

    Only the URL is tried again: a computer without a desktop stays one. What cannot be delivered is logged.
    """

    async def send(title: str, text: str, again: bool) -> bool:
        if not again:
            await desktop(title, text)
        if settings.notify_url is None:
            return True
        posted = await post(settings.notify_url, title, text)
        if not posted.delivered:
            log.warning("notify.undelivered", why=posted.detail)
        return posted.delivered

    return send


async def desktop(title: str, text: str) -> Outcome:
    """A notification on this computer's screen."""
    title, text = _argument(title), _argument(text)
    command = desktop_command(sys.platform, title, text)
    if shutil.which(command[0]) is None:
        return Outcome("desktop", False, f"{command[0]} is not installed", present=False)
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOMEPORT_TITLE": title, "HOMEPORT_TEXT": text},
        )
    except OSError as error:  # no process is to be had, which the outcome says
        return Outcome("desktop", False, f"{command[0]}: {error.strerror or error}")
    try:
        async with asyncio.timeout(DESKTOP_S):
            _, said = await process.communicate()
    except TimeoutError:  # the outcome says so
        process.kill()
        await process.wait()
        return Outcome("desktop", False, f"{command[0]} did not answer within {DESKTOP_S:g} s")
    if process.returncode:
        reason = said.decode("utf-8", "replace").strip().splitlines() or [f"ended with {process.returncode}"]
        return Outcome("desktop", False, f"{command[0]}: {reason[-1]}")
    return Outcome("desktop", True, f"shown by {command[0]}")


def _argument(text: str) -> str:
    """`text` as a program may be given it: a reason may quote what a box said, with NUL or half a character in it."""
    return text.replace("\0", "?").encode("utf-8", "replace").decode()


def desktop_command(system: str, title: str, text: str) -> Sequence[str]:
    """What shows a notification on `system` (a value of sys.platform)."""
    if system == "darwin":
        return ("osascript", "-e", _MACOS, title, text)
    if system == "win32":
        return ("powershell", "-NoProfile", "-NonInteractive", "-Command", _WINDOWS)
    return ("notify-send", "--app-name=homeport", "--", title, text)


async def post(url: str, title: str, text: str) -> Outcome:
    """One POST of two lines; ntfy takes its title from the header. The URL may be a secret: only its host is said."""
    headers = {"Title": title.encode("ascii", "replace").decode()}
    content = f"{title}\n{text}".encode("utf-8", "replace")
    try:
        # One limit for all of it, and the body stays unread: a reply without an end would hold up what comes after it.
        async with (
            asyncio.timeout(POST_S),
            web.client(timeout=None) as client,
            client.stream("POST", url, content=content, headers=headers) as reply,
        ):
            return Outcome("notify_url", reply.is_success, f"{_host(url)} answered {reply.status_code}")
    except HomeportError as error:
        return Outcome("notify_url", False, error.message)
    except TimeoutError:  # the outcome says so
        return Outcome("notify_url", False, f"{_host(url)} did not answer within {POST_S:g} s")
    except (httpx.HTTPError, httpx.InvalidURL, ExceptionGroup) as error:  # a group: of a port such as 99999
        return Outcome("notify_url", False, f"{type(error).__name__}: {_host(url)} cannot be reached")


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host or "the address"
    except httpx.InvalidURL:  # what is no address has no host
        return "the address"
