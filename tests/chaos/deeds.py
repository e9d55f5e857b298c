"""How each deed is done to a home. What lasts is undone later, by `Afterwards`, while other things befall the home."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.acceptance.home import Home
from tests.chaos.schedule import AIMS, Stroke

ORDERS = {"reply_lost": "reply_lost", "request_lost": "lost_before_effect", "gateway_page": "html_page"}
HOST_FAULTS = {
    "ssh_cut": ("ssh_cut", ("after_bytes",)),
    "ssh_refused": ("ssh_refused", ("seconds",)),
    "host_offline": ("offline", ("seconds",)),
    "reboot": ("reboot", ()),
}
SLOW_S = 0.5  # a reply of a slow market


@dataclass
class Afterwards:
    """What has to be undone, when, by what it concerns: daemon, market, box."""

    due: dict[str, tuple[float, Callable[[], None]]] = field(default_factory=dict)

    def plan(self, concerns: str, in_s: float, undo: Callable[[], None]) -> None:
        self.due[concerns] = (time.monotonic() + in_s, undo)

    def now(self, *concerns: str) -> None:
        """Undo at once what concerns these."""
        for each in concerns:
            if each in self.due:
                self.due.pop(each)[1]()

    def tick(self) -> None:
        self.now(*[each for each, (at, _) in self.due.items() if at <= time.monotonic()])


class Deeds:
    """`do` one stroke. False: there was nothing to strike."""

    def __init__(self, home: Home, later: Afterwards, wait: Callable[[Callable[[], bool], str], None]) -> None:
        self._home, self._later, self._wait = home, later, wait
        self._ordered: dict[int, str] = {}  # faults that wait for their requests: id and name
        self.hits: dict[str, int] = {}  # how many requests each of them has struck

        self._way = {
            "kill": lambda stroke: self._gone(signal.SIGKILL, stroke),
            "end": lambda stroke: self._gone(signal.SIGTERM, stroke),
            "sleep": self._sleep,
            **dict.fromkeys(HOST_FAULTS, self._befall_host),
            "box_silent": self._box_silent,
            "market_silent": self._market_silent,
            "market_slow": self._market_slow,
            "market_killed": self._market_killed,
            **dict.fromkeys(ORDERS, self._order),
        }

    def do(self, stroke: Stroke) -> bool:
        return self._way[stroke.deed.name](stroke)

    # -- the daemon

    def launch(self) -> None:
        """Start it and do not wait: it may be killed before it answers."""
        with open(self._home.folder / "jobd.out", "ab") as out:
            self._home.daemon = subprocess.Popen([self._home.bin / "jobd"], stdout=out, stderr=out, env=self._home.env)

    def _gone(self, number: int, stroke: Stroke) -> bool:
        """Signalled, waited for and, later, started again."""
        self._later.now("daemon")
        daemon, self._home.daemon = self._home.daemon, None
        assert daemon is not None
        daemon.send_signal(number)
        self._wait(lambda: daemon.poll() is not None, f"the daemon ends on signal {number}")
        # One that was told to end before it listened for that ends by the signal itself.
        assert daemon.returncode in (-number, 0), f"on signal {number} the daemon exits with {daemon.returncode}"
        self._later.plan("daemon", stroke.for_s, self.launch)
        return True

    def _sleep(self, stroke: Stroke) -> bool:
        self._later.now("daemon")
        daemon = self._home.daemon
        assert daemon is not None
        daemon.send_signal(signal.SIGSTOP)
        self._later.plan("daemon", stroke.for_s, lambda: daemon.send_signal(signal.SIGCONT))
        return True

    # -- the box

    def _befall_host(self, stroke: Stroke) -> bool:
        """One of the sandbox's own faults of a host, at once. The market refuses to reboot what does not run."""
        self._later.now("market")
        if not any(machine["destroyed_at"] is None for machine in self._home.ledger()):
            return False
        fault, wants = HOST_FAULTS[stroke.deed.name]
        params = {"seconds": stroke.for_s, "after_bytes": stroke.amount}
        with contextlib.suppress(AssertionError):
            self._home.fault(fault, **{name: params[name] for name in wants})
            return True
        return False

    def _box_silent(self, stroke: Stroke) -> bool:
        """Its sshd stands still: the kernel takes connections, and nobody answers."""
        self._later.now("box")
        doors = [door for file in self._home.folder.glob("market/boxes/*/process.json") if (door := _process(file))]
        for door in doors:
            door.suspend()
        self._later.plan("box", stroke.for_s, lambda: _go_on(doors))
        return bool(doors)

    # -- the market

    def _market_silent(self, stroke: Stroke) -> bool:
        self._later.now("market")
        market = self._home.market
        assert market is not None
        market.send_signal(signal.SIGSTOP)
        self._later.plan("market", stroke.for_s, lambda: market.send_signal(signal.SIGCONT))
        return True

    def _market_slow(self, stroke: Stroke) -> bool:
        self._later.now("market")
        order = self._home.fault("slow_reply", count=None, match=AIMS["any"], seconds=SLOW_S)
        self._later.plan("market", stroke.for_s, lambda: self._home.heal(order))
        return True

    def _market_killed(self, stroke: Stroke) -> bool:
        self._later.now("market", "box")
        market = self._home.market
        assert market is not None
        self.count_hits()
        market.kill()
        market.wait()
        self._later.plan("market", stroke.for_s, self._home.open_market)
        return True

    def _order(self, stroke: Stroke) -> bool:
        self._later.now("market")
        name = ORDERS[stroke.deed.name]
        order = self._home.fault(name, count=stroke.amount, match=AIMS[stroke.aim])
        self._ordered[int(order)] = f"{stroke.deed.name} {stroke.aim}"
        return True

    def count_hits(self) -> None:
        """Read how often each order has struck; orders do not outlive their market, so ask before it is killed."""
        self._later.now("market")
        for order in self._home._ask("GET", "/sandbox/faults")["faults"]:
            if name := self._ordered.pop(order["id"], ""):
                self.hits[name] = order["hits"]


def _process(file: Path) -> psutil.Process | None:
    """The process that a box's server wrote down, if it is still that one."""
    known = json.loads(file.read_text())
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(known["pid"])
        return process if process.create_time() == known["create_time"] else None
    return None


def _go_on(doors: list[psutil.Process]) -> None:
    for door in doors:
        with contextlib.suppress(psutil.NoSuchProcess):  # the market may have ended it meanwhile
            door.resume()
