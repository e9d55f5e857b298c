"""The person at the keyboard: submits, changes their mind, and at the end tidies up. Keeps their own memory of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon.control.commands import Commands
from daemon.errors import HomeportError

from .template import NAMES

if TYPE_CHECKING:
    from .simulation import Simulation

TOKEN_S = 900.0 + 60.0  # and the moments from the intent of a destroy until it is on the wire
MIXED_UP = 0.1
WORDS = ("cancel", "discard", "hold", "resume", "retry", "retry gguf", "abandon", "write-off", "accept")


@dataclass
class Person:
    sim: Simulation
    typed: set[str] = field(default_factory=set)  # jobs for which an instance id was typed to give up what lies there
    tokens: dict[int, list[float]] = field(default_factory=dict)  # when, as far as each still permits a destroy
    written_off: set[int] = field(default_factory=set)
    retried: set[str] = field(default_factory=set)  # jobs
    deleted_at: float = -math.inf  # the model
    cancelled: dict[str, int] = field(default_factory=dict)  # jobs, since nothing else was said of them: at which event

    async def submit(self) -> None:
        await self._submit(1)

    async def submit_twin(self) -> None:
        """The second job, if there is to be one; later than the first by the time that its terms say."""
        if (twin := self.sim.terms.twin) is not None:
            await asyncio.sleep(twin.after_s)
            await self._submit(2)

    async def submit_forgotten(self) -> None:
        """What a database that was put back does not know; its machine is nobody's then, and may train on."""
        lost = set(self.sim.jobs.values()) - set(self.sim.witness.names().values())
        for number, name in enumerate(NAMES, 1):
            if name in lost:
                await self._submit(number)

    async def _submit(self, number: int) -> None:
        """Until it is accepted: the same request, as jobctl would repeat it."""
        sim, name, twin = self.sim, NAMES[number - 1], self.sim.terms.twin
        dpo = twin.dpo if twin is not None and number == 2 else sim.dpo
        text = sim.terms.spec(name, dpo=dpo)
        folder = str(sim.root / "work")
        while True:
            found = await self._say(lambda c: c.submit(text, "job.yaml", folder, f"request-{number}"))
            if found is not None:
                sim.jobs[found["job"]] = name
                return
            await asyncio.sleep(2.0)

    async def _say(self, what: Callable[[Commands], Awaitable[dict[str, Any]]]) -> dict[str, Any] | None:
        """One command to the daemon that answers now; None when there is none, it refuses, or dies over it."""
        commands = self.sim.commands()
        if commands is None:
            return None

        async def ask() -> dict[str, Any] | None:
            try:
                return await what(commands)
            except HomeportError as error:
                self.sim.say("person", self.sim.scrub(f"is refused: {error}")[:150])
                return None

        task = self.sim.loop.create_task(ask(), context=self.sim.acting_as(commands))
        done, _ = await asyncio.wait({task}, timeout=120.0)
        if not done or task.cancelled() or task.exception() is not None:
            return None
        return task.result()

    async def command(self, word: str, job: str = "") -> None:
        """One word about a job, any of ours where none is named; `by` is always us."""
        sim, job = self.sim, job or self._any_job()
        instance = self._instance(self._mixed_up(job) if word in ("discard", "abandon") else job)
        sim.say("person", sim.scrub(f"{word} {job} {instance or ''}".rstrip()))
        ways: dict[str, Callable[[Commands], Awaitable[dict[str, Any]]]] = {
            "cancel": lambda c: c.cancel(job, "me", False),
            "discard": lambda c: c.cancel(job, "me", True, instance),
            "hold": lambda c: c.hold(job, "me"),
            "resume": lambda c: c.resume(job, "me"),
            "retry": lambda c: c.retry(job, "me", None),
            "retry gguf": lambda c: c.retry(job, "me", "gguf"),
            "abandon": lambda c: c.abandon(job, "me", instance),
            "write-off": lambda c: c.write_off(instance, "me", instance),
            "accept": lambda c: c.accept(job, "me"),
        }
        # What a typed id permits holds from the moment it is sent, whether or not the answer comes.
        if word in ("discard", "abandon"):
            self.types(job, instance)
        before = {number: list(times) for number, times in self.tokens.items()}
        self.written_off |= {instance} if word == "write-off" else set()
        reason = sim.witness.holds().get(job)
        if word.startswith("retry") or (word == "resume" and reason == "GONE"):  # rents and begins anew
            self.retried.add(job)
        # The driver may act on a word that ends a cancel before its answer is here.
        ends = word in ("hold", "retry", "retry gguf") or (word == "resume" and reason in ("CANCEL_WISH", "BY_PERSON"))
        cancelled = self.cancelled.pop(job, None) if ends else None
        if await self._say(ways[word]) is None:
            if cancelled is not None:
                self.cancelled[job] = cancelled
            return
        if word in ("hold", "cancel", "resume", "retry", "retry gguf"):  # void, but not what was typed meanwhile
            void = {number: times for number, times in before.items() if sim.market.is_of(job, number)}
            self.tokens = {n: [t for t in times if t not in void.get(n, [])] for n, times in self.tokens.items()}
        if word == "cancel":
            self.cancelled[job] = sim.witness.newest_event()

    def _any_job(self) -> str:
        ours = list(self.sim.jobs)
        return ours[0] if len(ours) == 1 else self.sim.chance.choice(ours)

    def _instance(self, job: str) -> int:
        """As jobctl names it; 0: none."""
        machines = reversed(self.sim.market.machines.values())
        newest = next((m.id for m in machines if m.label and job in m.label), 0)
        return next(iter(self.sim.witness.held_instances(job)), newest)

    def _mixed_up(self, job: str) -> str:
        """Now and then they type the instance id of the other job."""
        others = [other for other in self.sim.jobs if other != job]
        return others[0] if others and self.sim.chance.random() < MIXED_UP else job

    def is_forgotten(self, newest: int) -> None:
        """An older database was put back, which knows the events up to `newest`, and no later cancel."""
        self.cancelled = {job: said for job, said in self.cancelled.items() if said <= newest}

    def types(self, job: str, instance: int) -> None:
        """The id of another job's machine permits nothing."""
        if instance == 0 or self.sim.market.is_of(job, instance):
            self.typed.add(job)
            self.tokens.setdefault(instance, []).append(self.sim.clock.boot())

    def permits(self, instance: int) -> bool:
        """A destroy by a typed id; it permits one, and for a quarter of an hour."""
        times, now = self.tokens.get(instance, []), self.sim.clock.boot()
        while times:
            if now - times.pop(0) <= TOKEN_S:
                return True
        return False

    async def end_holds(self, how: str) -> None:
        """Every held job, once the sky is clear."""
        for job, reason in self.sim.witness.holds().items():
            if how == "resume" and reason not in ("BUDGET",):
                retry = reason in ("STAGE_FAILED", "VERIFY_FAILED", "TRANSFER_FAILED", "DATA", "INTEGRATION")
                word = "retry" if retry and self.sim.witness.states()[job] != "QUEUED" else "resume"
                await self.command(word, job)
                continue
            held = self.sim.witness.held_instances(job)
            for instance in held or [0]:
                self.types(job, instance)
                self.sim.say("person", f"abandon {instance}")
                await self._say(lambda c, job=job, instance=instance: c.abandon(job, "me", instance or None))
