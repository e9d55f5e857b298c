"""The person at the keyboard: submits, changes their mind, and at the end tidies up. Keeps their own memory of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from daemon.control.commands import Commands
from daemon.errors import HomeportError

if TYPE_CHECKING:
    from .simulation import Simulation

TOKEN_S = 900.0 + 60.0  # and the moments from the intent of a destroy until it is on the wire
WORDS = ("cancel", "discard", "hold", "resume", "retry", "retry gguf", "abandon", "write-off", "accept")


@dataclass
class Person:
    sim: Simulation
    typed: set[int] = field(default_factory=set)  # instance ids typed to give up what lies there
    tokens: dict[int, list[float]] = field(default_factory=dict)  # when, as far as each still permits a destroy
    written_off: set[int] = field(default_factory=set)
    retried: int = 0
    deleted_at: float = -math.inf  # the model
    cancelled: dict[str, int] = field(default_factory=dict)  # jobs, since nothing else was said of them: at which event
    at: int = 0

    async def submit(self) -> None:
        """Until it is accepted: the same request, as jobctl would repeat it."""
        sim = self.sim
        text = sim.terms.spec(dpo=sim.dpo)
        folder = str(sim.root / "work")
        while True:
            found = await self._say(lambda c: c.submit(text, "job.yaml", folder, "request-1"))
            if found is not None:
                if found["job"] not in sim.job_ids:
                    sim.job_ids.append(found["job"])
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

    async def command(self, word: str) -> None:
        """One word about the job; `by` is always us."""
        sim, job = self.sim, self.sim.job_ids[0]
        newest = next((m.id for m in reversed(sim.market.machines.values()) if m.label and job in m.label), 0)
        instance = next(iter(sim.witness.held_instances(job)), newest)  # as jobctl names it
        sim.say("person", f"{word} {instance or ''}")
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
            self.types(instance)
        before = {number: list(times) for number, times in self.tokens.items()}
        self.written_off |= {instance} if word == "write-off" else set()
        reason = sim.witness.holds().get(job)
        self.retried += word.startswith("retry") or (word == "resume" and reason == "GONE")  # rents and begins anew
        if await self._say(ways[word]) is None:
            return
        if word in (
            "resume",
            "retry",
            "retry gguf",
            "hold",
            "cancel",
        ):  # void, but not what was typed meanwhile
            self.tokens = {n: [t for t in times if t not in before.get(n, [])] for n, times in self.tokens.items()}
        if word == "cancel":
            self.cancelled[job] = sim.witness.newest_event()
        elif word in ("hold", "retry", "retry gguf") or (word == "resume" and reason in ("CANCEL_WISH", "BY_PERSON")):
            self.cancelled.pop(job, None)

    def is_forgotten(self, newest: int) -> None:
        """An older database was put back, which knows the events up to `newest`, and no later cancel."""
        self.cancelled = {job: said for job, said in self.cancelled.items() if said <= newest}

    def types(self, instance: int) -> None:
        self.typed.add(instance)
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
                await self.command(word)
                continue
            held = self.sim.witness.held_instances(job)
            for instance in held or [0]:
                self.types(instance)
                self.sim.say("person", f"abandon {instance}")
                await self._say(lambda c, job=job, instance=instance: c.abandon(job, "me", instance or None))
