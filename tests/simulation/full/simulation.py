"""One seed: a workstation with its daemon, a market, boxes and a person, through chaos, then healing, to an end.

Production runs unchanged. It meets this world only at its ports: market, clocks, `connect`, `verify`, `notify`; and at
the database and the file system, where boundaries.py listens. Phase one brings what the sky holds (faults.py) and the
mishaps of mishaps.py. Phase two is clear sky: every job must end, or be held with a reason, in bounded time; a person
then resumes what is held, and at last gives it up. After every step the ledgers are compared (invariants.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from random import Random
from unittest import mock

import structlog

from daemon.control.commands import Commands
from daemon.domain import ids
from daemon.errors import HomeportError
from daemon.settings import Settings

from . import boundaries
from .box import Boxes, acting
from .cells import Cell, Strike
from .disk import Disk, syncs_each_commit
from .faults import Sky
from .invariants import Violation, Witness
from .life import Daemon
from .loop import AT, LIFE, Crash, Life, SimulatedClock, VirtualLoop, bury, run
from .market import FakeMarket
from .mishaps import MISHAPS, PREPARATIONS, our_key_again
from .person import Person
from .template import USUAL, Terms, on_memory, paths_below, template

HEALED_WITHIN_S = 3 * 3600.0  # of a clear sky, until every job has ended or is held
RESTART_S = 3.0
STEPS = 250_000  # of the loop, in which the life of one job comes to its end
WAY_S = 1.5 * 3600.0  # a run with nothing but a way waits so long for its last strike


@dataclass(frozen=True)
class Result:
    """What one simulation came to. `boundaries` are (kind, what); `ledger` is what a fault-free run is compared by."""

    violations: tuple[Violation, ...]
    trace: tuple[str, ...]
    boundaries: tuple[tuple[str, str], ...]
    cells: frozenset[Cell]
    ledger: tuple[str, ...]
    steps: int


class Simulation:
    """`plan`: how the n-th boundary ends; `sky`: what strikes by chance; `way`: strikes to come in this order."""

    def __init__(
        self, seed: int, sky: Sky | None = None, plan: dict[int, str] | None = None, way: Sequence[Strike] = (), *,
        dpo: bool = True, terms: Terms = USUAL,
    ) -> None:  # fmt: skip
        self.chance, self._draw = Random(seed), Random(f"{seed} ids")
        self.sky = sky if sky is not None else Sky(Random(seed))
        self.plan, self.way, self.dpo, self.terms = plan or {}, list(way), dpo, terms
        self.aimed = bool(way) and not self.sky.active
        self.clock = SimulatedClock()
        self.loop = VirtualLoop(self.clock, STEPS if terms.twin is None else 2 * STEPS)
        self.lives: list[Life] = []
        self.daemons: dict[int, Daemon] = {}
        self.trace: list[str] = []
        self.met: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.cells: set[Cell] = set()
        self.healing = False
        self.over = False
        self.copies = 0  # of the database, that somebody will put back
        self.submitting: list[asyncio.Task[None]] = []
        self.jobs: dict[str, str] = {}  # their names by id, as their person knows them
        self.root = on_memory("hp-sim-")
        self.settings = Settings(paths_below(self.root))
        shutil.copytree(template(), self.root, dirs_exist_ok=True)
        self.disk = Disk(self.root)
        self.market = FakeMarket(self)
        self.boxes = Boxes(self)
        self.person = Person(self)
        self.witness = Witness(self)

    # -- running

    def run(self) -> Result:
        with self.open():
            self.follow(self._main)
            self.witness.at_the_end()
        w = self.witness
        return Result(
            tuple(w.violations), tuple(self.trace), tuple(self.met), frozenset(self.cells), w.ledger, self.loop.steps
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """While it is open the hooks tell this simulation; afterwards nothing is left of its files and processes."""
        boundaries.enter(self)
        kept, drawn = structlog.get_config(), mock.patch.object(ids, "job_id", self._job_id)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.sky.struck = self.strike
        drawn.start()
        try:
            yield
        finally:
            self.over = True
            for life in self.lives:
                life.dead = True
            for task in asyncio.all_tasks(self.loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            for life in self.lives:
                Context().run(LIFE.set, life)
                bury(life)
            drawn.stop()
            boundaries.enter(None)
            self.witness.close()
            for daemon in self.daemons.values():
                daemon.database.close()
            self.loop.close()
            structlog.configure(**kept)
            shutil.rmtree(self.root, ignore_errors=True)

    def follow(self, main: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run `main` to its end; that it comes to none violates I23."""
        try:
            run(self.loop, main)
        except (TimeoutError, RuntimeError) as error:
            self.witness.accuse("I23", f"{type(error).__name__}: {error}")

    async def _main(self) -> None:
        self.begin_life()
        await self.person.submit()
        self.will_submit(self.person.submit_twin)
        ends_at = self.loop.time() + (WAY_S if self.aimed else self.chance.choice((400.0, 900.0, 2400.0)))
        for name in sorted(self.sky.active):
            if (mishap := MISHAPS.get(name)) is not None:
                for _ in range(self.chance.randint(1, self.sky.most)):
                    wait_s = self.chance.uniform(1.0, ends_at - self.loop.time())
                    self.loop.call_later(wait_s, self._befall, name, mishap, context=Context())
        while self.loop.time() < ends_at and not self._has_struck():  # noqa: ASYNC110
            await asyncio.sleep(20.0)  # simulated time costs nothing
        self._heal()
        await asyncio.gather(*self.submitting)
        await self._settle()

    def _has_struck(self) -> bool:
        """Nothing more is to come: every strike of the way came, or there was none and the job is over."""
        return not self.way and not self.copies and not self.sky.active and (self.aimed or self.witness.all_over())

    def _befall(self, name: str, mishap: Callable[[Simulation], bool | None], at: str = "") -> None:
        if self.healing or self.over:
            return
        if mishap(self) is not False:
            self.say("world", name)
            self.strike(name, at)

    def _heal(self) -> None:
        self.say("world", "the sky is clear")
        self.healing = True
        self.sky.clear()
        self.market.heal()
        our_key_again(self)

    async def _settle(self) -> None:
        """Clear sky: jobs end or are held; what is held is resumed, at last given up; then nothing may bill."""
        begun = self.loop.time()
        for patience in ("resume", "resume", "give up", "give up", "give up"):
            while not self.witness.all_settled():
                if self.loop.time() - begun > HEALED_WITHIN_S:
                    raise TimeoutError(f"not settled: {self.witness.states()}")
                await asyncio.sleep(20.0)
            if self.witness.all_over():
                break
            await asyncio.sleep(self.terms.answers_after)
            await self.person.end_holds(patience)
            begun = self.loop.time()
            await asyncio.sleep(20.0)
        await asyncio.sleep(900.0)  # late arrivals are ended, destroys confirmed

    # -- lives

    def begin_life(self) -> None:
        if self.over:
            return
        life = Life(len(self.lives) + 1, self.market.account_of_key)
        self.lives.append(life)
        context = Context()
        context.run(LIFE.set, life)
        self.say(str(life), "starts")
        task = self.loop.create_task(self._live(life), context=context)
        task.add_done_callback(lambda _: self._ended(life), context=Context())

    async def _live(self, life: Life) -> None:
        try:
            daemon = Daemon(self, life)
            self.daemons[life.number] = daemon
            await daemon.run()
        except (HomeportError, OSError) as error:
            self.say(str(life), f"ends: {type(error).__name__}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.witness.accuse("I22", f"the daemon ended by {type(error).__name__}: {error}")

    def _ended(self, life: Life) -> None:
        """A process that ended by itself is started again, unless another one leads."""
        if not life.dead:
            life.dead = True
            self.daemons[life.number].database.close()
            if not any(not other.dead for other in self.lives):
                self.loop.call_later(RESTART_S, self.begin_life, context=Context())

    def commands(self) -> Commands | None:
        """Of the newest life that answers."""
        for life in reversed(self.lives):
            if not life.dead and (daemon := self.daemons.get(life.number)) and daemon.commands:
                return daemon.commands
        return None

    def acting_as(self, commands: Commands) -> Context:
        """The context of the life that these commands belong to: a request to its API."""
        context = Context()
        owner = next(n for n, daemon in self.daemons.items() if daemon.commands is commands)
        context.run(LIFE.set, self.lives[owner - 1])
        return context

    def leads(self, life: Life) -> None:
        self.say(str(life), "leads")
        self.witness.leads()

    def kill(self, life: Life, *, power: bool = False) -> None:
        """From outside, or from within by `ending`: nothing of this life runs again."""
        if life.dead:
            return
        life.dead = True
        self.say(str(life), "loses power" if power else "is killed")
        self.loop.call_soon(self._after_death, life, power, context=Context())

    def _after_death(self, life: Life, power: bool) -> None:
        """The database file as the process left it: no connection is closed in good order."""
        self.witness.close()
        path = self.settings.paths.database
        left = {p: p.read_bytes() for p in (path, Path(f"{path}-wal")) if p.exists()}
        if (daemon := self.daemons.get(life.number)) is not None:
            if power and not syncs_each_commit(daemon.database):
                left.pop(Path(f"{path}-wal"), None)
            daemon.database.close()
        if not any(not other.dead for other in self.lives):
            self.put_back(left)
            if power:
                for what in self.disk.cut(self.chance):
                    self.say("disk", self.scrub(what))
                wal = Path(f"{path}-wal")
                if wal.exists():
                    wal.write_bytes(wal.read_bytes() + self.chance.randbytes(self.chance.choice((0, 100, 4120))))
            self.loop.call_later(RESTART_S, self.begin_life, context=Context())
        self.witness.after_death()

    def put_back(self, left: dict[Path, bytes]) -> None:
        self.witness.close()  # an open connection would go on with the files that go now
        path = self.settings.paths.database
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        for file, content in left.items():
            file.write_bytes(content)

    # -- boundaries (boundaries.Ground) and the wire

    def ending(self, kind: str, what: str) -> str | None:
        """How this boundary ends; None: well. Raises Crash where the life ends before it."""
        life = LIFE.get()
        if life is None:
            return None
        if life.dead:
            raise Crash
        number = len(self.met)
        self.met.append((kind, what))
        self.say(str(life), f"#{number} {kind}: {what}")
        self.at_boundary(kind if kind in ("commit", "file") else f"{kind} {what}")
        ending = self.plan.get(number) or self._by_the_sky(kind)
        if ending is not None:
            self.say("world", f"at #{number}: {ending}")
        if ending == "crash before" or (ending == "crash after" and kind == "file"):
            self.kill(life, power="power cut" in self.sky.active)
            raise Crash
        return ending

    def at_boundary(self, name: str) -> None:
        """What is to strike here next does. Raises Crash where that ends this life."""
        AT.set(name)
        if self.healing or not self.way:
            return
        first = self.way[0]
        if name != first.boundary or first.state not in self.witness.states().values():
            return
        here = takewhile(lambda strike: (strike.state, strike.boundary) == (first.state, first.boundary), self.way)
        for strike in list(here):
            mishap = MISHAPS.get(strike.fault) or PREPARATIONS.get(strike.fault)
            if mishap is None:
                self.sky.sure.add(strike.fault)
            else:
                Context().run(self._befall, strike.fault, mishap, name)
        if (life := LIFE.get()) is not None and life.dead:
            raise Crash

    def will_submit(self, submit: Callable[[], Coroutine[object, object, None]]) -> None:
        """The person does, in their own time; before that is done no job can be said to have ended."""
        self.submitting.append(self.loop.create_task(submit(), context=Context()))

    def hear(self, word: str) -> None:
        """The person says it, in a moment of their own."""
        self.loop.create_task(self.person.command(word), context=Context())

    def _by_the_sky(self, kind: str) -> str | None:
        if self.healing or not (self.sky.active or self.sky.sure):
            return None
        if self.sky.strikes("kill"):
            return self.chance.choice(("crash before", "crash after"))
        if kind == "file" and self.sky.strikes("disk full"):
            return "error before"
        if kind == "commit" and self.sky.strikes("store fails"):
            return "error before"
        if kind == "commit" and self.sky.strikes("commit unsure"):
            return "effect, then error"
        return None

    def after(self, ending: str | None) -> None:
        if ending == "crash after" and (life := LIFE.get()) is not None:
            self.kill(life, power="power cut" in self.sky.active)
            raise Crash

    def committed(self, what: str) -> None:
        self.witness.committed()

    def file_operation(self, what: str, paths: tuple[Path, ...]) -> None:
        self.disk.follow(what, paths)

    def wire(self, what: str, instance: int, **more: str) -> None:
        """A changing request leaves the daemon, for market or box."""
        life = LIFE.get()
        if life is not None and life.dead:
            raise Crash
        self.witness.wire.request(what, instance, life, **more)

    # -- telling

    def say(self, actor: str, what: str) -> None:
        self.trace.append(f"{self.clock.boot() - 1000.0:10.2f}  {actor or acting():8}  {what}")

    def scrub(self, text: str) -> str:
        """Without what differs from run to run: ids that the daemon draws, and our process number."""
        for number, job in enumerate(self.jobs, 1):
            text = text.replace(job, f"JOB{number}")
        text = re.sub(rf"{os.getpid()}(-\d+)?", "PID", text)
        return re.sub(rf"(?<=[-/])[{ids.ALPHABET}]{{10}}\b", "NONCE", text)

    def _job_id(self) -> str:
        """Drawn by the seed: what is listed by job comes in the order of their ids."""
        return self._draw.choice(ids.LETTERS) + "".join(self._draw.choices(ids.ALPHABET, k=5))

    def strike(self, name: str, at: str = "") -> None:
        """It did strike; where the task that met it stands, or `at` that boundary.

        Whose boundary that was of two jobs nobody says: it counts where both are in one state.
        """
        self.sky.strokes[name] += 1
        if len(states := set(self.witness.states().values())) == 1:
            self.cells.add(Cell(states.pop(), name, at or AT.get()))
        here = next((n for n, strike in enumerate(self.way) if strike.fault == name), None)
        if here is not None and self.way[here].boundary == self.way[0].boundary:
            del self.way[here]


with contextlib.suppress(AttributeError):
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
