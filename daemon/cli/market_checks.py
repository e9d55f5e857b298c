"""The lines of `jobctl doctor` that ask the market without the daemon: this computer's clock, and what bills unseen."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from daemon.api.messages import Check
from daemon.cli.terminal import cleaned, dollars, duration
from daemon.cli.verdicts import failed, passed, skipped
from daemon.errors import HomeportError
from daemon.market.wire import clock_ms
from daemon.settings import Settings

ANSWER_S = 5.0
CLOCK_OFF_S = 120.0


def clock(loaded: Settings) -> Sequence[Check]:
    """Against the market's Date header: a wrong clock turns holds, deadlines and costs into wrong numbers."""
    now = time.time()
    try:
        with urllib.request.urlopen(loaded.market_url, timeout=ANSWER_S) as reply:  # noqa: S310 - http(s), by settings
            date = reply.headers.get("Date")
    except urllib.error.HTTPError as refusal:  # an answer too: it has a date
        date = refusal.headers.get("Date")
    except (OSError, ValueError, http.client.HTTPException) as error:
        return [skipped("clock", f"{loaded.market_url} does not answer ({type(error).__name__})")]
    if date is None or (shown_ms := clock_ms({"date": date})) is None:
        return [skipped("clock", f"{loaded.market_url} does not say what time it is")]
    off = now - shown_ms / 1000
    if abs(off) > CLOCK_OFF_S:
        way = "ahead of" if off > 0 else "behind"
        detail = f"this computer is {duration(abs(off))} {way} the market: holds and costs are reckoned wrong"
        return [failed("clock", detail, "timedatectl set-ntp true   or set the clock by hand")]
    return [passed("clock", "agrees with the market's")]


def unwatched(loaded: Settings) -> Check:
    """Where no daemon can ask it: does the key work, and what bills by our labels?"""
    from daemon.cli import straight

    try:
        found = straight.leases(loaded)
    except HomeportError as error:
        return failed("market", cleaned(error.message), error.hint)
    if found["leases"]:
        names = ", ".join(str(lease["instance"]) for lease in found["leases"])
        rate = dollars(found["money"]["rate"])
        return failed("market", f"rented and unwatched, {rate}/h: instance {names}", "jobctl up   and: jobctl leases")
    return passed("market", f"{loaded.market_url}: nothing of ours is rented")
