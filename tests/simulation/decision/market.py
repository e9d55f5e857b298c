"""The fake market, its machines and their boxes. They keep their own ledger; what they tell is another matter.

Every time here is true milliseconds since the start of the run, every amount micro-dollars. A machine lives lazily:
`advance` brings it to a moment, event by event, so that eight hours asleep cost as little to simulate as a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from daemon.domain.market import HALTED, ON_GPU
from daemon.errors import (
    CredentialsRefused,
    MarketError,
    MarketRefused,
    MarketUnreachable,
    NoCredit,
    OfferGone,
    RateLimited,
)

HOUR_MS = 3_600_000
STAGE_MS = {"SFT": 40 * 60_000, "DPO": 20 * 60_000, "GGUF": 10 * 60_000}
CHECKPOINT_MS = 300_000  # what a killed stage loses at most
FOR_EVER = 1 << 60


@dataclass
class Work:
    """One stage as the box has it: its files are whole when `done_at` is set."""

    stage: str
    left_ms: int
    done_at: int | None = None
    failed: str | None = None


@dataclass(eq=False)
class Machine:
    """One contract: what the market bills, and the box that runs on it."""

    id: int
    label: str
    price: int
    storage: int
    created: int
    away_ms: int  # nothing runs and nobody calls for so long: the box stops itself
    ours: bool = True
    actual: str = "loading"
    intended: str = "running"
    boots_at: int = FOR_EVER
    listed_from: int = 0
    omitted_until: int = 0  # a trusted listing forgets it
    shown: str | None = None  # a status the market makes up
    shown_until: int = 0
    status_msg: str = ""
    offline_until: int = 0  # the market does not see the host, and bills nothing
    dark_until: int = 0  # nobody reaches its sshd
    starts: bool = True  # False: a start is accepted and nothing comes of it
    queued_passes: int = -1  # listings since its start only queued, or since a stop of it was sent; -1: it is not
    lingers_ms: int = 0  # after an accepted destroy
    goes_at: int = FOR_EVER
    returns_ms: int = 0  # gone, and back after so long
    gone_at: int | None = None
    label_shown: str | None = ""  # "": as it is
    key: str = "k"
    denies: bool = False
    refuses: str = ""  # what prepare objects to
    work: dict[str, Work] = field(default_factory=dict)  # by nonce
    told: tuple[str, ...] = ()  # nonces of job.json, in order
    provisioned: bool = False
    alive: bool = False
    begun: set[str] = field(default_factory=set)  # nonces that reached the runner
    quiet_since: int = 0  # when it booted, or its runner ended
    called_at: int = 0
    listed_price: int = 0  # of the last trusted listing
    known_price: int = 0  # and of the last one before the last call; at first what it was offered at
    fails_next: str = ""
    forges_next: bool = False
    now: int = 0
    cost: float = 0.0
    idle_cost: float = 0.0  # of it, at the full price while nothing ran
    dearest: int = 0  # its highest price so far
    destroy_asked: int = 0

    def __post_init__(self) -> None:
        self.dearest = self.price
        self.listed_price = self.known_price = self.known_price or self.price

    def reprice(self, price: int) -> None:
        self.price, self.dearest = price, max(self.dearest, price)

    @property
    def is_billable(self) -> bool:
        return self.gone_at is None

    def is_up(self, now: int) -> bool:
        return self.gone_at is None and self.actual == "running" and self.dark_until <= now

    def listed(self, now: int) -> bool:
        return self.gone_at is None and self.listed_from <= now and self.omitted_until <= now

    def status(self, now: int) -> str | None:
        if self.offline_until > now:
            return "offline"
        if self.shown == ON_GPU and self.actual != "running":
            return self.actual  # the GPU is given back, and that is seen
        return self.shown if self.shown_until > now else self.actual

    def advance(self, to: int) -> None:
        """Live until `to`: boot, work, stop by itself, be billed."""
        while self.now < to and self.gone_at is None:
            at, happen = self._next()
            if at >= to:
                self._bill(to - self.now)
                self.now = to
                return
            if at > self.now:
                self._bill(at - self.now)
                self.now = at
            happen()

    def _next(self) -> tuple[int, Callable[[], None]]:
        """What happens to it first if nobody does anything, and when."""
        at, happen = self.goes_at, self._go
        if self.actual != "running":
            if self.boots_at < at:
                at, happen = self.boots_at, self._boot
        elif self.alive:
            if self.now + self._current().left_ms < at:
                at, happen = self.now + self._current().left_ms, self._finish_stage
        elif self.ours:
            quiet = max(self.quiet_since, self.called_at) + self.away_ms
            if quiet < at:
                at, happen = quiet, self.halt
        if self.now < self.offline_until < at:
            at, happen = self.offline_until, self._seen_again
        return at, happen

    def _bill(self, elapsed: int) -> None:
        running = self.actual == "running"
        if self.offline_until <= self.now:
            billed = (self.price if running else self.storage) * elapsed / HOUR_MS
            self.cost += billed
            if running and not self.alive:
                self.idle_cost += billed
        if running and self.alive:
            self._current().left_ms -= elapsed

    def _current(self) -> Work:
        for nonce in self.told:
            if (work := self.work[nonce]).done_at is None:
                return work
        raise LookupError("every stage is done")

    def _finish_stage(self) -> None:
        current = self._current()
        if self.fails_next:
            current.failed, self.fails_next = self.fails_next, ""
            self._runner_ends()
            return
        current.left_ms, current.done_at = 0, self.now
        if all(self.work[n].done_at is not None for n in self.told):
            self._runner_ends()
        else:
            self.begun.add(next(n for n in self.told if self.work[n].done_at is None))

    def _runner_ends(self) -> None:
        self.alive, self.quiet_since = False, self.now

    def _boot(self) -> None:
        self.actual, self.boots_at, self.quiet_since = "running", FOR_EVER, self.now

    def _seen_again(self) -> None:
        """Only a mark for billing: the rate changes here."""

    def _go(self) -> None:
        self.goes_at, self.gone_at, self.alive = FOR_EVER, self.now, False

    # -- what is done to it ---------------------------------------------------------------------------------------

    def halt(self, actual: str = "exited") -> None:
        """Stopped, by whomever: the disk stays."""
        self.kill_runner()
        self.actual, self.intended, self.boots_at, self.queued_passes = actual, "stopped", FOR_EVER, -1

    def host_halts(self) -> None:
        """The host stops the container; the market still wants it running."""
        self.kill_runner()
        self.actual, self.boots_at = "exited", FOR_EVER

    def reboot(self, back_at: int) -> None:
        self.kill_runner()
        self.actual, self.boots_at = "loading", back_at

    def kill_runner(self) -> None:
        if self.alive:
            current = self._current()
            whole = STAGE_MS[current.stage]
            current.left_ms = min(whole, current.left_ms + CHECKPOINT_MS)
            self._runner_ends()

    # -- the runner's protocol --------------------------------------------------------------------------------------

    def tell(self, runs: tuple[tuple[str, str], ...], fresh: bool) -> None:
        """job.json: nonces and stages of the attempt. A stage goes on from its newest checkpoint unless `fresh`."""
        left = {w.stage: w.left_ms for w in self.work.values() if w.done_at is None}
        for nonce, stage in runs:
            whole = STAGE_MS[stage]
            self.work.setdefault(nonce, Work(stage, whole if fresh else left.get(stage, whole)))
        self.told = tuple(nonce for nonce, _ in runs)
        self.provisioned = True

    def start_stage(self, nonce: str) -> None:
        """Starting what runs or is done is a no-op; else the chain runs from here to its end."""
        self.begun.add(nonce)
        unfinished = any(self.work[n].done_at is None for n in self.told)
        if unfinished and not self.alive and nonce in self.told and self.work[nonce].failed is None:
            self.alive = True


@dataclass
class Answer:
    """How the next call is to end. `effect`: the market does it; `then` is raised afterwards."""

    effect: bool = True
    then: MarketError | CredentialsRefused | None = None
    listed_after_ms: int = 0
    nameless: bool = False  # an answer of 200 that names no instance
    price_times: float = 1.0
    queued: bool = False
    lingers_ms: int = 0
    returns_ms: int = 0


PLAIN = Answer()


def unreachable() -> MarketError:
    return MarketUnreachable("no answer")


REFUSALS: dict[str, Callable[[], MarketError | CredentialsRefused]] = {
    "unreachable": unreachable,
    "rate limited": lambda: RateLimited("slower", retry_after_s=20.0),
    "refused": lambda: MarketRefused("refused"),
    "offer gone": lambda: OfferGone("taken"),
    "no credit": lambda: NoCredit("no credit"),
    "key": lambda: CredentialsRefused("401"),
}


@dataclass
class Market:
    """Offers, contracts and the account. Calls raise what the client would; `next_answer` spoils one of them."""

    price: int
    storage: int
    away_ms: int
    boot_ms: int
    machines: list[Machine] = field(default_factory=list)
    credit: int = 500_000_000
    offers: bool = True
    blind_until: int = 0  # untrusted listings
    cut_until: int = 0  # our network
    next_answer: Answer | None = None
    labels: list[str] = field(default_factory=list)  # of every create that arrived
    foreign_touched: int = 0
    end_ms: int | None = None  # of every contract, in UTC as the market has it
    arrived: Callable[[str, Machine], None] = lambda what, machine: None  # a create or destroy took effect

    def advance(self, now: int) -> None:
        for machine in self.machines:
            if machine.now < now and machine.gone_at is None:
                machine.advance(now)

    def by_id(self, instance: int) -> Machine | None:
        for machine in self.machines:
            if machine.id == instance:
                return machine
        return None

    def create(self, label: str, now: int) -> int | None:
        """The instance id; None when the answer names none."""
        answer = self._answer(now)
        if answer.effect:
            self.labels.append(label)
            machine = Machine(
                id=len(self.machines) + 100, label=label, price=round(self.price * answer.price_times),
                storage=self.storage, created=now, away_ms=self.away_ms, boots_at=now + self.boot_ms, now=now,
                listed_from=now + answer.listed_after_ms, known_price=self.price,
            )  # fmt: skip
            self.machines.append(machine)
            self.arrived("create", machine)
        if answer.then is not None:
            raise answer.then
        return None if answer.nameless else self.machines[-1].id

    def start(self, instance: int, now: int) -> bool:
        """Whether the start is only queued."""
        answer, machine = self._answer(now), self._existing(instance)
        if answer.effect:
            machine.intended, machine.queued_passes = "running", 0 if answer.queued else -1
            if machine.actual in HALTED and machine.starts and not answer.queued:
                machine.actual, machine.boots_at = "loading", now + self.boot_ms
        if answer.then is not None:
            raise answer.then
        return answer.queued

    def stop(self, instance: int, now: int) -> None:
        answer, machine = self._answer(now), self._existing(instance)
        machine.queued_passes = min(machine.queued_passes, 0)
        if answer.effect:
            machine.halt()
        if answer.then is not None:
            raise answer.then

    def destroy(self, instance: int, now: int) -> None:
        answer, machine = self._answer(now), self._existing(instance)
        if answer.effect:
            machine.destroy_asked += 1
            self.arrived("destroy", machine)
            machine.goes_at = min(machine.goes_at, now + answer.lingers_ms)
            machine.returns_ms = answer.returns_ms
            machine.advance(now + 1)
        if answer.then is not None:
            raise answer.then

    def show(self, instance: int, now: int) -> bool:
        """Whether the contract exists. Raises MarketUnreachable while blind or cut off."""
        if now < self.cut_until or now < self.blind_until:
            raise MarketUnreachable("no answer")
        machine = self.by_id(instance)
        return machine is not None and machine.gone_at is None

    def _answer(self, now: int) -> Answer:
        answer, self.next_answer = self.next_answer or PLAIN, None
        if now < self.cut_until:
            raise MarketUnreachable("no network")
        return answer

    def _existing(self, instance: int) -> Machine:
        machine = self.by_id(instance)
        if machine is None or machine.gone_at is not None:
            raise MarketRefused("no_such_instance")
        self.foreign_touched += not machine.ours
        return machine
