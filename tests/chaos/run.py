"""One run in a process group of its own: `python -m tests.chaos.run NUMBER BIN FOLDER [EXPECTED]`.

BIN holds the installed commands, FOLDER becomes the home. NUMBER `quiet` or `quiet-real` is a run that nothing befalls.
The last line of the output is a Report as JSON; the home is kept when a promise was broken.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from daemon.cli.demo import quick_job
from tests.acceptance.home import Home
from tests.acceptance.installed import ROOT
from tests.chaos.deeds import Afterwards, Deeds
from tests.chaos.schedule import Kind, Schedule, Stroke, draw
from tests.chaos.sight import Sight, Window
from tests.chaos.verdict import Ending, broken

PATIENCE_S = {False: 240.0, True: 600.0}  # without anything new; by whether it trains for real
LOOK_S = 0.01
TAIL = 30  # events that a failure shows


@dataclass
class Report:
    """What befell a run and what came of it. `dealt`: each stroke that hit, with the state that it hit."""

    number: str
    real: bool
    model_sha256: str = ""
    seconds: float = 0.0
    dealt: list[dict[str, str]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)


class Stuck(AssertionError):
    """Nothing new for longer than patience lasts, or the daemon ended by itself."""


class Run:
    def __init__(self, home: Home, job_file: Path, schedule: Schedule, report: Report) -> None:
        self._home, self._job_file, self._schedule, self._report = home, job_file, schedule, report
        self._later = Afterwards()
        self._deeds = Deeds(home, self._later, self._wait)
        self._submit: subprocess.Popen[bytes] | None = None
        self._parent = os.getppid()

    def through(self, expected: str) -> None:
        """From the submit to the verdict. Raises Stuck."""
        self._window = Window(self._home.folder)
        try:
            for stroke in self._schedule.strokes:
                self._deal(stroke)
            self._wait(lambda: self._look().ended, "the job ends")
            self._later.now("daemon", "market", "box")
            self._wait(lambda: all(m["destroyed_at"] for m in self._home.ledger()), "every machine is returned")
            self._count_orders()
            ending = self._ending(expected)
            self._report.model_sha256, self._report.broken = ending.model_sha256, broken(ending)
        finally:
            sight = self._look()
            self._report.tail = [f"{i} {kind} {body[:160]}" for i, kind, body in sight.events[-TAIL:]]
            if not sight.job:  # never taken: what the person was told
                said = self._home.folder / "submit.out"
                self._report.tail += said.read_text(errors="replace").splitlines()[-TAIL:] if said.exists() else []
            self._later.now("market", "box", "daemon")
            self._window.close()

    # -- strokes

    def _deal(self, stroke: Stroke) -> None:
        since = self._look().events[-1][0]
        self._wait(lambda: (s := self._look()).ended or s.reached(stroke.moment, since), stroke.said())
        self._pause(stroke.after_s)
        sight = self._look()
        if sight.ended or not self._deeds.do(stroke):
            self._report.missed.append(stroke.said())
        elif stroke.deed.kind is not Kind.ORDER:  # an order strikes later, if ever
            state = self._look().state or "QUEUED"
            self._report.dealt.append({"deed": stroke.deed.name, "state": state, "as": stroke.said()})

    def _count_orders(self) -> None:
        self._deeds.count_hits()
        for order, hits in self._deeds.hits.items():
            deed, _, aim = order.partition(" ")
            if hits:
                self._report.dealt.append({"deed": deed, "state": f"on {aim}", "as": f"{order}: {hits} requests"})
            else:
                self._report.missed.append(order)

    # -- waiting

    def _look(self) -> Sight:
        return self._window.look()

    def _wait(self, until: Callable[[], bool], what: str) -> None:
        """Until it is so; meanwhile the person insists and what is due is undone. Patience begins anew with news."""
        patience_s = PATIENCE_S[self._report.real]
        news, deadline = self._look().events[-1:], time.monotonic() + patience_s
        while not until():
            self._tick()
            time.sleep(LOOK_S)
            if (newest := self._look().events[-1:]) != news:
                news, deadline = newest, time.monotonic() + patience_s
            sight = self._look()
            if time.monotonic() > deadline or (sight.hold and what == "the job ends"):
                raise Stuck(f"{what}: not within {patience_s:g} s; {sight.state} {sight.hold}")

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._tick()
            time.sleep(min(LOOK_S, seconds))

    def _tick(self) -> None:
        if os.getppid() != self._parent:
            raise Stuck("whoever asked for this run has ended")  # so that nothing is left running
        self._later.tick()
        daemon = self._home.daemon
        if daemon is not None and daemon.poll() is not None:
            raise Stuck(f"the daemon ended by itself with {daemon.returncode}")
        if not self._look().job and (self._submit is None or self._submit.poll() is not None):
            with open(self._home.folder / "submit.out", "ab") as out:  # typed again until the daemon has taken it
                self._submit = subprocess.Popen(
                    [self._home.bin / "jobctl", "submit", "-y", str(self._job_file)],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._home.env,
                )  # fmt: skip

    # -- what came of it

    def _ending(self, expected: str) -> Ending:
        sight, one = self._look(), self._window.one
        models = list(self._home.folder.glob(f"models/*/v*-{sight.job}/*.gguf"))
        return Ending(
            state=sight.state,
            hold=sight.hold,
            jobs=int(one("SELECT count(*) FROM jobs")),
            open_operations=int(one("SELECT count(*) FROM operations WHERE state IN ('INTENT', 'SENT', 'UNKNOWN')")),
            integrity=one("PRAGMA integrity_check"),
            model_sha256=hashlib.sha256(models[0].read_bytes()).hexdigest() if len(models) == 1 else "",
            expected_sha256=expected,
            machines=self._home.ledger(),
            requests=self._home.journal("PUT") + self._home.journal("DELETE"),
            events=self._home.events(sight.job),
            log=(self._home.folder / "state" / "jobd.log").read_text(),
        )


def main() -> None:
    """Command line."""
    number, bin_folder, folder, expected = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    quiet = number.startswith("quiet")
    schedule = Schedule(0, ()) if quiet else draw(int(number))
    real = schedule.real or number == "quiet-real"
    report, begun = Report(number, real), time.monotonic()
    image, python = (
        ("homeport/nano", ROOT / ".venv-box/bin/python") if real else ("homeport/replay", bin_folder / "python")
    )
    home = Home(folder, bin_folder, image, python)
    os.chdir(folder)  # `python -m daemon...` of a child would find the checkout before what is installed
    try:
        home.open_market()
        home.start()
        spec = folder / "spec"
        spec.mkdir()
        Run(home, quick_job(spec, "full"), schedule, report).through(expected)
    except Exception as error:  # noqa: BLE001 - whatever stops a run is its result, and is told with the schedule
        report.broken.append(f"{type(error).__name__}: {error}")
    finally:
        if home.daemon is not None:
            home.daemon.send_signal(signal.SIGCONT)
        home.close()
        report.seconds = round(time.monotonic() - begun, 1)
        print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    main()
