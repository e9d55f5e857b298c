"""One seed, one run: chaos, then healing, then the last look. Replays exactly.

The driver's loop (look, decide, act) is the real order of daemon/control/driver.py; reconcile passes, a person's
commands, crashes and sleeps come in between at the boundaries that the acts yield.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from daemon.domain import plan as decide
from daemon.domain.actions import TALKS_TO_BOX, Action, StopStages, Watch
from daemon.domain.evidence import silence_began
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.machine import IllegalTransition
from daemon.domain.records import Kind, OpState
from daemon.domain.snapshot import Rules, Snapshot
from daemon.errors import (
    AccessDenied,
    BoxError,
    CredentialsRefused,
    HostKeyChanged,
    LinkLost,
    LostRace,
    MarketError,
    MarketUnreachable,
    RateLimited,
    TransferFailed,
)
from tests.simulation.coverage import aim_of
from tests.simulation.decision import acts, checks, faults, operate, reconcile
from tests.simulation.decision.chaos import Chaos
from tests.simulation.decision.market import FOR_EVER, HOUR_MS, Machine, Market
from tests.simulation.decision.roads import road
from tests.simulation.decision.store import Rejected, Store
from tests.simulation.decision.world import TIMING, World

CHAOS_STEPS, STEPS = 140, 900
HEALED_MS = 30 * HOUR_MS  # a late arrival may be a day late
NOISE = (0.0, 0.0, 0.02, 0.06)  # strikes a boundary, of a run that has an aim
CHANCE = (0.05, 0.15)  # and of one that has none
HOLDS_FOR: tuple[tuple[type[Exception], HoldReason], ...] = (  # as driver._guarded, in its order
    (HostKeyChanged, HoldReason.HOST_KEY),
    (TransferFailed, HoldReason.TRANSFER_FAILED),
    (OSError, HoldReason.DISK_FULL),
    (CredentialsRefused, HoldReason.CREDENTIALS),
)


@dataclass
class Run(Chaos):
    """`aim`: the cell that the roads lead to; noise comes beside it."""

    trace: list[str] = field(default_factory=list)
    healing: bool = False
    touched_before_permit: bool = False
    recorded: int = 0
    reached_at: int = -1  # when a box last answered, and when one did not
    unreached_at: int = -1
    excused: float = 0.0  # had been spent when the box had last to be asked whether it was at the end
    steps: int = 0
    last_action: Action | None = None
    sent_marks: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        ask = rng.random() < 0.15
        stages: tuple[str, ...] = ("SFT", "DPO", "GGUF")
        if self.aim is None and rng.random() < 0.3:
            stages = rng.choice((("SFT", "GGUF"), ("DPO", "GGUF")))
        if self.aim is not None:
            self.strikes, wants_ask = road(self.aim, rng)
            ask = wants_ask if wants_ask is not None else ask
        limited = self.aim is not None and self.aim.action in ("HoldJob", "StopStages")
        tight = 3_000_000 if limited or self.aim is None else 8_000_000
        rules = Rules(
            cost_limit=rng.choice((None, 8_000_000, tight)),
            time_limit_s=36_000.0 if limited else rng.choice((None, 36_000.0)),
            hold_limit=2_000_000, reserve=1_000_000, rescue_s=420.0, ask_before_destroy=ask,
            boot_patience_s=TIMING.boot_patience, ssh_patience_s=TIMING.ssh_patience,
            offline_patience_s=TIMING.offline_patience, start_patience_s=TIMING.start_patience,
            destroy_resend_s=TIMING.destroy_resend, offer_retry_s=TIMING.offer_retry,
            offer_patience_s=TIMING.offer_patience,
        )  # fmt: skip
        price = 2_000_000
        market = Market(price, 20_000, round(rules.hold_limit / price * HOUR_MS), rng.choice((60_000, 300_000)))
        self.w = World(market, Store("abc123", stages, 0), rules)
        job = self.w.store.job
        job.created_at = job.state_since = job.spoken_at = self.w.wall
        market.machines.append(Machine(1, "theirs", price, 0, 0, 0, ours=False, actual="running", now=FOR_EVER))
        self.w.market.arrived = self._arrived
        self.noise = rng.choice(NOISE if self.aim is not None else CHANCE)
        self.patient = rng.random() < 0.5  # a person who does not answer
        self.pause_ms = rng.choice((40_000, 120_000))
        self.stride_ms = rng.choice((300_000, 900_000))
        self._held_at: tuple[int | None, float, int] | None = None

    # -- the whole run --------------------------------------------------------------------------------------------

    def execute(self) -> Run:
        """Raises checks.Violation."""
        while not self.over and self.steps < CHAOS_STEPS and (self.strikes or self.noise):
            self._step()
            if self.w.store.job.hold_reason is not None and not self._awaits_strike() and self._settled():
                if self.patient or self.rng.random() < 0.3:
                    break
                self._answer_hold()
        self._heal()
        return self

    def _heal(self) -> None:
        faults.heal(self)
        self.healing = True
        self._say("healed")
        until = self.w.now + HEALED_MS
        while not self.over and self.steps < STEPS and self.w.now < until:
            if self.w.store.job.hold_reason is not None and self._settled():
                break
            self._step()
        late = max((m.listed_from for m in self.w.market.machines), default=0)
        if late > self.w.now:
            self.pass_time(late - self.w.now + 1)
        for _ in range(3 if self.over and not (self.revived or self.w.known_lost()) else 8):
            self.next_pass = self.w.now + self.pause_ms
            self.pass_time(self.pause_ms)
        checks.at_end(self)

    @property
    def over(self) -> bool:
        return self.w.store.job.state.is_terminal

    def _settled(self) -> bool:
        """Held, and nothing bills but disks, nor will."""
        busy = any(op.kind is not Kind.STAGE_START for op in self.w.store.opened)
        return not busy and all(
            m.actual != "running" and m.boots_at > HEALED_MS and m.queued_passes < 0
            for m in self.w.market.machines
            if m.ours and m.is_billable and m.listed(self.w.now)
        )

    def _awaits_strike(self) -> bool:
        return bool(self.strikes) and self.strikes[0].may_come_in_a_hold

    def _answer_hold(self) -> None:
        """The person comes back and says go on, or over again."""
        name = "resume" if self.rng.random() < 0.7 else "retry"
        faults.BY_NAME[f"jobctl {name}"].strike(self)
        if self.rng.random() < 0.5:
            self.w.home.room, self.w.home.verifies, self.w.market.credit = True, True, 500_000_000
        self._say(f"person: {name}")

    # -- look, decide, act ------------------------------------------------------------------------------------------

    def _step(self) -> None:
        w = self.w
        self.steps += 1
        s = w.take()
        try:
            action = decide.plan(s)
        except Exception as error:
            raise checks.Violation(f"I22: plan ends with {type(error).__name__}: {error}") from error
        self.last_action = action
        if self.tracing:
            self._say(f"{s.job.state} {action_words(action)}")
        checks.at_action(self, s, action)
        self.interrupted = False
        self.touched_before_permit = w.home.touched
        self.listed_at, self.known_at = w.now, self.passed_at
        unasked = self.unasked
        self._perform(s, action, acts.TABLE[type(action)](w, s, action))
        w.market.next_answer = None
        w.memory.in_flight.clear()
        if unasked or self.unasked:
            self.excused = self.spent
        checks.after_step(self)
        self.slept_in_step = False
        self._watch_hold()

    def _perform(self, s: Snapshot, action: Action, act: operate.Act) -> None:
        """Translate what can go wrong as the driver does."""
        w = self.w
        reason, wait_ms = None, 0
        try:
            self._follow(action, act, s.job.state)
            if isinstance(action, Watch | StopStages):
                self.reached_at = w.now
            if isinstance(action, TALKS_TO_BOX):
                w.memory.link_down_since_ms, w.memory.silent_since_ms, w.memory.failures = None, None, 0
        except LostRace:
            pass
        except (LinkLost, AccessDenied):
            self.unreached_at = w.now
            seen = s.lease.last_seen if s.lease is not None else w.wall
            w.memory.silent_since_ms = silence_began(w.memory.silent_since_ms, w.wall, heard=False, last_seen_ms=seen)
            w.memory.link_down_since_ms = w.memory.link_down_since_ms or w.wall
            w.memory.failures += 1
            wait_ms = min(30_000, 500 << min(w.memory.failures, 6)) if w.memory.failures < 4 else self.stride_ms
        except operate.ArtifactLost:
            acts.artifact_lost(w)
        except RateLimited:
            wait_ms = 20_000
        except MarketUnreachable:
            wait_ms = acts.PAUSE_MS
        except tuple(kind for kind, _ in HOLDS_FOR) as error:
            reason = next(why for kind, why in HOLDS_FOR if isinstance(error, kind))
        except (MarketError, BoxError, operate.NoPermit):
            reason = HoldReason.INTERNAL
        except IllegalTransition as error:
            raise checks.Violation(f"I22: plan asks for what the lifecycle forbids: {error}") from error
        except Rejected as error:
            self._say(f"the database refuses: {error}")
            if not w.store.job.state.is_terminal and w.store.job.hold_reason is None:
                reason = HoldReason.INTERNAL
            wait_ms = 5_000
        if reason is not None and w.store.job.hold_reason is not reason:
            w.store.hold(w.store.job.version, reason, "", w.wall)
        elif reason is not None:
            wait_ms = acts.PAUSE_MS
        self._wait(wait_ms)

    def _wait(self, ms: int) -> None:
        """A listing with something new ends it: the real driver looks again after each."""
        w, until = self.w, self.w.now + ms
        shown = w.store.live.status if w.store.live is not None else None
        while w.now < until:
            self.pass_time(min(until, max(self.next_pass, w.now + 1)) - w.now)
            if w.store.live is not None and w.store.live.status != shown:
                return

    def _follow(self, action: Action, act: operate.Act, state: JobState) -> None:
        name = type(action).__name__
        store = self.w.store
        for side, ms in act:
            if store.job.state is not state:
                self._moved(state, by_person=False)
            if not self.healing:
                self._strike(store.job.state if side == operate.BEFORE else state, name, side)
                if self.crashed or self.record_fails:
                    act.close()
                    self._fall()
                    return
            before = store.job.state
            if ms == operate.STRIDE:
                ms = self.rng.randrange(self.stride_ms // 2, self.stride_ms)
            elif ms == operate.UNTIL_PASS:
                ms = max(1, self.next_pass - self.w.now)
            if ms:
                self.pass_time(ms)
            if self.interrupted and action.interruptible:
                act.close()
                return
            state = before
        if store.job.state is not state:
            self._moved(state, by_person=False)

    def _fall(self) -> None:
        """The process dies, or one record of it fails."""
        w = self.w
        if self.crashed:
            self.restart()
            operate.recover(w)
            self._pass()
        else:
            w.memory.in_flight.clear()
            self.pass_time(5_000)
        self.crashed = self.record_fails = False

    # -- time and the reconcile loop --------------------------------------------------------------------------------

    def pass_time(self, ms: int) -> None:
        w = self.w
        target = w.now + ms
        while True:
            due = min(self.next_pass, w.now + 1_000) if w.pass_soon else self.next_pass
            if due > target:
                break
            w.now = max(w.now, due)
            self._pass()
        w.now = target
        w.market.advance(target)

    def _pass(self) -> None:
        w = self.w
        w.pass_soon = False
        w.market.advance(w.now)
        opened = [op for op in w.store.open(Kind.CREATE) if op.state is OpState.UNKNOWN]
        for op in opened:
            self.sent_marks.setdefault(op.id, (w.trusted_passes, w.awake if w.last_pass is None else w.last_pass))
        before = self._rows() if w.now < w.market.blind_until else ()
        self.renew()
        if reconcile.run_once(w):
            self.passed_at = w.now
            for op in opened:
                if op.state is OpState.ABSENT:
                    checks.at_absent(self, op)
            checks.after_pass(self)
        elif before:
            checks.at_untrusted(self, before, self._rows())
        self.next_pass = w.now + (self.pause_ms if self._unsettled() else self.stride_ms)
        if self.passed_at != w.now:
            self.blind_ms += self.next_pass - w.now

    def _unsettled(self) -> bool:
        """Something is being made, confirmed or resolved: the market is listed again soon."""
        store = self.w.store
        if store.opened:
            return True
        for lease in store.leases:
            if lease.is_held:
                halted = lease.status == "exited" and lease.intended == "stopped"
                if lease.absent_count or not (lease.status == "running" or halted):
                    return True
        return store.job.state is JobState.VERIFIED and store.job.hold_reason is None

    def _rows(self) -> tuple[object, ...]:
        store = self.w.store
        return (
            tuple((lease.state, lease.status, lease.absent_count, lease.running_ms) for lease in store.leases),
            tuple(op.state for op in store.operations),
            store.job.version,
        )

    @property
    def unasked(self) -> bool:
        """No box has said whether training goes on since this computer woke or the daemon started."""
        return self.w.looked_at <= self.w.woke_at

    @property
    def known(self) -> list[Machine]:
        """Machines of ours that have a row."""
        return [m for m in self.w.market.machines if m.ours and self.w.store.by_instance(m.id) is not None]

    @property
    def spent(self) -> float:
        """By the market's ledger, of the machines that we know."""
        return sum(m.cost for m in self.known)

    @property
    def dearest(self) -> int:
        """The highest price there was: nobody sees one that rises and falls between two listings."""
        return max(machine.dearest for machine in self.w.market.machines)

    # -- what the ledger notes ----------------------------------------------------------------------------------------

    def _arrived(self, what: str, machine: Machine) -> None:
        if what == "create":
            checks.at_create(self, self.listed_at)
        elif machine.ours:
            checks.at_destroy(self, machine)

    def _watch_hold(self) -> None:
        """What a hold costs beyond the work of its machine, from its beginning to its end."""
        self.note_hold()
        job, machine = self.w.store.job, self.w.machine(self.w.store.live)
        if job.hold_reason is None or machine is None:
            self._held_at = None
            return
        begun = self._held_at
        if begun is None or begun[0] != job.hold_since or begun[2] != machine.id:
            self._held_at = (job.hold_since, machine.idle_cost, machine.id)
            return
        if self.disturbed == self.sleeps:
            checks.in_hold(self, machine, machine.idle_cost - begun[1])

    def _say(self, text: str) -> None:
        if self.tracing:
            self.trace.append(f"{self.w.now / 60_000:9.2f} min  {text}")


def action_words(action: Action) -> str:
    words = [getattr(action, name, "") for name in ("why", "trigger", "reason", "detail")]
    return " ".join([type(action).__name__, *(str(word) for word in words if word)])


def simulate(seed: int, *, tracing: bool = False) -> Run:
    """The run of a seed. Raises checks.Violation with the run as its `run`."""
    run = Run(seed, aim_of(seed), tracing)
    try:
        return run.execute()
    except checks.Violation as error:
        error.run = run  # type: ignore[attr-defined]
        raise
