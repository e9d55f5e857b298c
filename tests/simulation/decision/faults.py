"""The faults of this tier, one row each: family, what happens, what it needs to happen to.

A row's `strike` changes the fake world, never the daemon's rows; the person's commands are the one exception, as in
life. It returns whether there was anything to strike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from daemon.domain.market import ON_GPU
from daemon.domain.records import Kind, OpState
from daemon.errors import Refused
from tests.simulation.decision.commands import COMMANDS
from tests.simulation.decision.market import FOR_EVER, HALTED, REFUSALS, Answer, Machine
from tests.simulation.decision.world import EPOCH_MS

if TYPE_CHECKING:
    from tests.simulation.decision.run import Run

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
FAMILIES = tuple(f"F{n}" for n in range(1, 17))
ELSEWHERE = {
    "F7": "two daemons: the epoch is a row of the database, so the full tier has them",
    "F14": "SQLite: the full tier; here a record that fails (`the record fails`) stands for all of it",
}


class Need(StrEnum):
    """What a fault needs at the boundary where it strikes."""

    NOTHING = "nothing"
    MACHINE = "a machine at the market"
    CREATE = "a create about to be sent"
    START = "a start about to be sent"
    STOP = "a stop about to be sent"
    DESTROY = "a destroy about to be sent"
    BOX = "a call to the box about to be made"
    PREPARE = "a box about to be prepared"
    LOOK = "a look about to be taken"
    TRANSFER = "bytes about to be fetched"
    PROOF = "a model about to be proven"
    RECEIPT = "a verified model on this disk"


@dataclass(frozen=True)
class Fault:
    name: str
    family: str
    need: Need
    strike: Callable[[Run], bool]


def _answer(kind: Kind, then: str | None = None, **values: object) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        if not any(op.kind is kind and op.state is OpState.INTENT for op in run.w.store.operations):
            return False
        run.w.market.next_answer = Answer(then=REFUSALS[then]() if then else None, **values)  # type: ignore[arg-type]
        return True

    return strike


def _machine(change: Callable[[Run, Machine], object]) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        machine = run.struck_machine()
        if machine is None:
            return False
        change(run, machine)
        machine.advance(run.w.now)
        return True

    return strike


def _person(name: str) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        try:
            COMMANDS[name](run.w)
        except Refused:
            return True  # said, and nothing changed
        run.interrupted = True
        return True

    return strike


def _set(owner: Callable[[Run], object], **values: object) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        for name, value in values.items():
            setattr(owner(run), name, value)
        return True

    return strike


def _until(owner: Callable[[Run], object], name: str, *lengths: int) -> Callable[[Run], bool]:
    def strike(run: Run) -> bool:
        setattr(owner(run), name, run.w.now + run.rng.choice(lengths))
        return True

    return strike


def _show(run: Run, m: Machine) -> None:
    m.shown = run.rng.choice(("scheduling", "unknown", ON_GPU, ON_GPU))
    m.shown_until = run.w.now + (HOUR if m.shown == ON_GPU else run.rng.choice((10 * MINUTE, HOUR)))


def _offline(run: Run, m: Machine) -> None:
    m.offline_until = m.dark_until = run.w.now + 2 * HOUR


def _reboot(run: Run, m: Machine) -> None:
    if m.actual == "running":
        m.reboot(run.w.now + 90_000)


def _host_stops(run: Run, m: Machine) -> None:
    m.starts = run.rng.random() < 0.6
    if m.actual not in HALTED:
        m.host_halts()


def _reappears(run: Run) -> bool:
    """Something of ours that was gone is listed again. It may stop itself before a listing shows that it ran."""
    gone = [m for m in run.w.market.machines if m.gone_at is not None]
    if not gone:
        return False
    back = gone[-1]
    back.gone_at, back.actual, back.boots_at = None, "running", FOR_EVER
    back.now = back.listed_from = run.w.now
    run.unseen_ms += run.w.market.away_ms
    return True


market, home, world = (lambda r: r.w.market), (lambda r: r.w.home), (lambda r: r.w)
C, S, T, D = Kind.CREATE, Kind.START, Kind.STOP, Kind.DESTROY
N = Need
FAULTS: tuple[Fault, ...] = (
    Fault("reply lost, listed at once", "F1", N.CREATE, _answer(C, "unreachable")),
    Fault("reply lost, listed after a minute", "F1", N.CREATE, _answer(C, "unreachable", listed_after_ms=MINUTE)),
    Fault("reply lost, listed after 20 min", "F1", N.CREATE, _answer(C, "unreachable", listed_after_ms=20 * MINUTE)),
    Fault("reply lost, listed after a day", "F1", N.CREATE, _answer(C, "unreachable", listed_after_ms=DAY)),
    Fault("create never arrives", "F1", N.CREATE, _answer(C, "unreachable", effect=False)),
    Fault("listed late", "F1", N.CREATE, _answer(C, listed_after_ms=5 * MINUTE)),
    Fault("answer names no instance", "F2", N.CREATE, _answer(C, nameless=True)),
    Fault("another price than offered", "F2", N.CREATE, _answer(C, price_times=1.5)),
    Fault("create refused", "F2", N.CREATE, _answer(C, "refused", effect=False)),
    Fault("kill -9", "F3", N.NOTHING, lambda run: run.crash()),
    Fault("listings fail", "F4", N.NOTHING, _until(market, "blind_until", 2 * MINUTE, 20 * MINUTE, HOUR)),
    Fault(
        "a listing forgets it", "F4", N.MACHINE,
        _machine(lambda r, m: setattr(m, "omitted_until", r.w.now + r.rng.choice((MINUTE, 20 * MINUTE)))),
    ),
    Fault("a status that is not so", "F4", N.MACHINE, _machine(_show)),
    Fault("too many requests", "F4", N.CREATE, _answer(C, "rate limited", effect=False)),
    Fault("destroyed, reply lost", "F5", N.DESTROY, _answer(D, "unreachable")),
    Fault("destroy never arrives", "F5", N.DESTROY, _answer(D, "unreachable", effect=False)),
    Fault("destroy takes ten minutes", "F5", N.DESTROY, _answer(D, lingers_ms=10 * MINUTE)),
    Fault("destroy is forgotten", "F5", N.DESTROY, _answer(D, effect=False)),
    Fault("destroy refused: the key", "F5", N.DESTROY, _answer(D, "key", effect=False)),
    Fault("destroy refused: 404", "F5", N.DESTROY, _answer(D, "refused", effect=False)),
    Fault("gone, and back", "F5", N.NOTHING, _reappears),
    Fault("sleep of 8 h", "F6", N.NOTHING, lambda run: run.sleep(8 * HOUR)),
    Fault("wall clock back 1 h", "F6", N.NOTHING, lambda run: run.step_wall(-HOUR)),
    Fault("wall clock on 1 d", "F6", N.NOTHING, lambda run: run.step_wall(DAY)),
    Fault("reboot", "F8", N.MACHINE, _machine(_reboot)),
    Fault("sshd dead for 20 min", "F8", N.MACHINE,
          _machine(lambda r, m: setattr(m, "dark_until", r.w.now + 20 * MINUTE))),
    Fault("another host key", "F8", N.MACHINE, _machine(lambda r, m: setattr(m, "key", m.key + "'"))),
    Fault("the host stops it", "F8", N.MACHINE, _machine(_host_stops)),
    Fault("the host goes away", "F8", N.MACHINE, _machine(_offline)),
    Fault("the market loses sight", "F8", N.MACHINE,
          _machine(lambda r, m: setattr(m, "offline_until", r.w.now + HOUR))),
    Fault("it cannot start there", "F8", N.MACHINE,
          _machine(lambda r, m: setattr(m, "status_msg", "OCI runtime create failed"))),
    Fault("the start only queues", "F8", N.START, _answer(S, queued=True)),
    Fault("start, reply lost", "F8", N.START, _answer(S, "unreachable")),
    Fault("start never arrives", "F8", N.START, _answer(S, "unreachable", effect=False)),
    Fault("stop, reply lost", "F8", N.STOP, _answer(T, "unreachable")),
    Fault("stop never arrives", "F8", N.STOP, _answer(T, "unreachable", effect=False)),
    Fault("the runner dies", "F9", N.MACHINE, _machine(lambda r, m: m.kill_runner())),
    Fault("a stage fails: disk full there", "F10", N.MACHINE, _machine(lambda r, m: setattr(m, "fails_next", "full"))),
    Fault("this disk is full", "F10", N.NOTHING, _set(home, room=False)),
    Fault("bytes arrive wrong", "F11", N.TRANSFER, _set(home, spoils=1)),
    Fault("the model is deleted here", "F11", N.RECEIPT, _set(home, touched=True)),
    Fault("a forged done.json", "F12", N.LOOK, _machine(lambda r, m: setattr(m, "forges_next", True))),
    Fault("another model", "F12", N.PROOF, _set(home, verifies=False)),
    Fault("wrong counts", "F12", N.PREPARE, _machine(lambda r, m: setattr(m, "refuses", "INTEGRATION"))),
    Fault("data refused", "F12", N.PREPARE, _machine(lambda r, m: setattr(m, "refuses", "DATA"))),
    Fault("preflight fails", "F12", N.PREPARE, _machine(lambda r, m: setattr(m, "refuses", "machine"))),
    *(Fault(f"jobctl {name}", "F13", N.NOTHING, _person(name)) for name in COMMANDS),
    Fault("console destroys it", "F13", N.MACHINE, _machine(lambda r, m: setattr(m, "goes_at", r.w.now))),
    Fault("console stops it", "F13", N.MACHINE, _machine(lambda r, m: m.halt("stopped"))),
    Fault("console edits the label", "F13", N.MACHINE, _machine(lambda r, m: setattr(m, "label_shown", "mine"))),
    Fault("the record fails", "F14", N.NOTHING, lambda run: run.fail_record()),
    Fault("credit runs out", "F15", N.NOTHING, _set(market, credit=300_000)),
    Fault("no credit to rent", "F15", N.CREATE, _answer(C, "no credit", effect=False)),
    Fault("the contract ends soon", "F15", N.MACHINE,
          lambda run: _set(market, end_ms=EPOCH_MS + run.w.now + 15 * MINUTE)(run)),
    Fault("the price rises", "F15", N.MACHINE, _machine(lambda r, m: m.reprice(m.price * 2))),
    Fault("the price falls", "F15", N.MACHINE, _machine(lambda r, m: m.reprice(m.price // 2))),
    Fault("the offer is taken", "F15", N.CREATE, _answer(C, "offer gone", effect=False)),
    Fault("nothing fits", "F15", N.NOTHING, _set(market, offers=False)),
    Fault("half-open for 10 min", "F16", N.NOTHING, _until(market, "cut_until", 10 * MINUTE)),
    Fault("the key is not accepted", "F16", N.BOX, _machine(lambda r, m: setattr(m, "denies", True))),
)  # fmt: skip
BY_NAME = {fault.name: fault for fault in FAULTS}


def heal(run: Run) -> None:
    """Everything works from here on; what was done stays done."""
    w = run.w
    w.market.blind_until = w.market.cut_until = 0
    w.market.offers, w.market.next_answer, w.market.end_ms = True, None, None
    w.market.credit = max(w.market.credit, 500_000_000)
    w.home.room, w.home.spoils, w.home.verifies = True, 0, True
    for m in w.market.machines:
        m.omitted_until = m.shown_until = m.offline_until = m.dark_until = 0
        m.denies = m.forges_next = False
        m.starts, m.status_msg, m.refuses, m.fails_next = True, "", "", ""
