"""What befalls one run: its number is the seed, and decides every moment, deed and duration. Pure.

A moment is a place on the line (a state, and an event written in it) and a while after it. States are drawn first, each
as likely as the other, so that the short ones are hit as often as the long ones.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from enum import StrEnum

REAL_EVERY = 10  # every tenth run trains for real, the others replay a recording
STRETCH = 12.0  # how much longer the box works when it trains for real


class Kind(StrEnum):
    """What a deed is done to."""

    KILL = "kill"  # the daemon itself
    BOX = "box"  # the way to the box, or the box
    MARKET = "market"  # the way to the market, or the market
    ORDER = "order"  # the next requests of one kind to the market


@dataclass(frozen=True)
class Deed:
    name: str
    kind: Kind
    weight: int  # among the kills, or among all others
    longest_s: float = 0.0  # how long the daemon is away, or the network gone


DEEDS = (
    Deed("kill", Kind.KILL, 6, 2.0),  # SIGKILL
    Deed("end", Kind.KILL, 2, 2.0),  # SIGTERM
    Deed("sleep", Kind.KILL, 2, 4.0),  # SIGSTOP .. SIGCONT
    Deed("ssh_cut", Kind.BOX, 2),
    Deed("ssh_refused", Kind.BOX, 1, 3.0),
    Deed("box_silent", Kind.BOX, 2, 4.0),  # connections are taken, nothing is answered
    Deed("host_offline", Kind.BOX, 1, 3.0),
    Deed("reboot", Kind.BOX, 1),
    Deed("market_silent", Kind.MARKET, 2, 4.0),
    Deed("market_slow", Kind.MARKET, 1, 4.0),
    Deed("market_killed", Kind.MARKET, 2, 2.0),  # with it all power of the boxes goes, then both come back
    Deed("reply_lost", Kind.ORDER, 2),
    Deed("request_lost", Kind.ORDER, 1),
    Deed("gateway_page", Kind.ORDER, 1),
)


KILLS = tuple(deed for deed in DEEDS if deed.kind is Kind.KILL)
OTHERS = tuple(deed for deed in DEEDS if deed.kind is not Kind.KILL)


@dataclass(frozen=True)
class Moment:
    """In `state`, once `event` was written there; a deed falls anywhere in the `span_s` after it."""

    state: str
    event: str
    span_s: float
    works: bool = False  # the box works meanwhile: real training stretches the span


MOMENTS = (  # in the order of the line; spans as measured on an idle machine
    Moment("QUEUED", "job.submitted", 0.12),
    Moment("QUEUED", "create.sent", 0.06),
    Moment("QUEUED", "create.done", 0.9),
    Moment("QUEUED", "box.proven", 0.8, works=True),
    Moment("PROVISIONED", "job.moved", 0.02),
    Moment("PROVISIONED", "stage_start.sent", 0.2),
    Moment("SFT", "job.moved", 0.7, works=True),
    Moment("SFT", "stage.done", 0.12),
    Moment("DPO", "job.moved", 0.13, works=True),
    Moment("DPO", "stage.done", 0.17),
    Moment("GGUF", "job.moved", 0.7, works=True),
    Moment("GGUF", "stage.done", 0.12),
    Moment("DOWNLOADED", "job.moved", 0.46),
    Moment("VERIFIED", "job.moved", 0.02),
    Moment("VERIFIED", "destroy.sent", 0.01),
    Moment("VERIFIED", "destroy.done", 1.8),
)
AT_ONCE = Moment("", "", 0.0)
STARTING = Moment("", "daemon.started", 0.5)  # again, since the stroke before
STATES = tuple(dict.fromkeys(moment.state for moment in MOMENTS))
WITH_A_BOX = MOMENTS[2:13]

# Requests that an order waits for, by a name: create and destroy are the two that a lost reply may double.
AIMS = {
    "create": {"method": "PUT", "path": "/api/v0/asks/*"},
    "destroy": {"method": "DELETE", "path": "/api/v0/instances/*"},
    "list": {"method": "GET", "path": "/api/v1/instances*"},
    "any": {"method": "*", "path": "/api/*"},
}


@dataclass(frozen=True)
class Stroke:
    """`deed` at `moment` + `after_s`, lasting `for_s` seconds; `amount` is a count of requests or of bytes."""

    deed: Deed
    moment: Moment
    after_s: float = 0.0
    for_s: float = 0.0
    amount: int = 0
    aim: str = ""

    def said(self) -> str:
        """One line for a person."""
        where = f"{self.moment.state or 'anywhere'} {self.moment.event or 'at once'}"
        more = {k: v for k, v in asdict(self).items() if k in ("for_s", "amount", "aim") and v}
        return f"{self.deed.name} at {where} + {self.after_s:.3f} s {more or ''}".rstrip()


@dataclass(frozen=True)
class Schedule:
    number: int
    strokes: tuple[Stroke, ...]

    @property
    def real(self) -> bool:
        return is_real(self.number)


def is_real(number: int) -> bool:
    return number > 0 and number % REAL_EVERY == 0


def draw(number: int) -> Schedule:
    """The schedule of run `number`: one to four kills, one or two other faults, in the order of the line.

    The first of the others goes through the table by turns, so that few runs meet them all.
    """
    rng = random.Random(number)
    stretch = STRETCH if is_real(number) else 1.0
    others = [OTHERS[number % len(OTHERS)], *_drawn(rng, OTHERS, rng.choice((0, 0, 0, 1)))]
    strokes = [_dealt(rng, deed, stretch) for deed in (*others, *_drawn(rng, KILLS, rng.randint(1, 4)))]
    in_order = sorted(strokes, key=lambda s: (_place(s.moment), s.after_s))
    return Schedule(number, tuple(_caught_starting(rng, in_order)))


def _drawn(rng: random.Random, deeds: tuple[Deed, ...], count: int) -> list[Deed]:
    return rng.choices(deeds, [deed.weight for deed in deeds], k=count)


def _dealt(rng: random.Random, deed: Deed, stretch: float) -> Stroke:
    match deed.kind:
        case Kind.BOX:
            return _stroke(rng, deed, WITH_A_BOX, stretch)
        case Kind.ORDER:
            return Stroke(deed, AT_ONCE, amount=rng.randint(1, 2), aim=rng.choice(tuple(AIMS)))
        case _:
            return _stroke(rng, deed, MOMENTS, stretch)


def _stroke(rng: random.Random, deed: Deed, moments: tuple[Moment, ...], stretch: float) -> Stroke:
    state = rng.choice([state for state in STATES if any(moment.state == state for moment in moments)])
    moment = rng.choice([moment for moment in moments if moment.state == state])
    span_s = moment.span_s * (stretch if moment.works else 1.0)
    for_s = rng.choice((0.0, rng.uniform(0.0, deed.longest_s)))
    amount = rng.choice((0, 3_000, 300_000, 1_800_000)) if deed.name == "ssh_cut" else 0
    return Stroke(deed, moment, rng.uniform(0.0, span_s), for_s, amount)


def _caught_starting(rng: random.Random, strokes: list[Stroke]) -> list[Stroke]:
    """A kill that follows another is one time in four dealt while the daemon still recovers from that one."""
    dealt: list[Stroke] = []
    for stroke in strokes:
        before = dealt[-1].deed.name if dealt else ""
        if stroke.deed.kind is Kind.KILL and before in ("kill", "end") and rng.random() < 0.25:
            stroke = Stroke(stroke.deed, STARTING, rng.uniform(0.0, STARTING.span_s), stroke.for_s)
        dealt.append(stroke)
    return dealt


def _place(moment: Moment) -> int:
    return MOMENTS.index(moment) if moment in MOMENTS else -1
