"""A person who says and does anything at any moment, drawn by Hypothesis, which shortens what it finds."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from .mishaps import MISHAPS
from .person import WORDS
from .simulation import Simulation
from .template import USUAL, Twin

CONSOLE = ("console destroys", "console stops", "label edited", "vanishes", "model deleted")
# Without a database of examples and without chance, so that every run of the tests draws the same.
DRAWN = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


class AnyPerson(RuleBasedStateMachine):
    """One job or two, from submission to the end; whatever is said on the way, no invariant may be violated."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = ExitStack()

    @initialize(ask=st.booleans(), after_s=st.sampled_from((None, 0.0, 100.0)))
    def submit(self, ask: bool, after_s: float | None) -> None:
        """With `ask` the machine waits in VERIFIED for the word `accept`; `after_s` is that of a second job."""
        twin = None if after_s is None else Twin(after_s, dpo=False)
        self.sim = Simulation(1, dpo=False, terms=replace(USUAL, ask=ask, twin=twin))
        self.opened.enter_context(self.sim.open())
        self.sim.begin_life()
        self.sim.follow(self.sim.person.submit)
        self.sim.follow(self.sim.person.submit_twin)
        self.submitted = len(self.sim.jobs)

    @rule()
    def submit_again(self) -> None:
        """The same request once more: it is the same job."""
        self.sim.follow(self.sim.person.submit)
        assert len(self.sim.jobs) == self.submitted

    @rule(seconds=st.sampled_from((5.0, 60.0, 300.0, 3000.0)))
    def wait(self, seconds: float) -> None:
        self.sim.follow(lambda: asyncio.sleep(seconds))

    @rule(word=st.sampled_from(WORDS))
    def say(self, word: str) -> None:
        self.sim.follow(lambda: self.sim.person.command(word))

    @rule(deed=st.sampled_from(CONSOLE))
    def use_the_console(self, deed: str) -> None:
        MISHAPS[deed](self.sim)

    @invariant()
    def nothing_is_violated(self) -> None:
        assert self.sim.witness.violations == [], "\n".join(self.sim.trace[-200:])

    def teardown(self) -> None:
        with self.opened:
            self.sim._heal()
            self.sim.follow(self.sim._settle)
            self.sim.witness.at_the_end()
            self.nothing_is_violated()


TestAnyPerson = AnyPerson.TestCase
TestAnyPerson.settings = settings(DRAWN, max_examples=6, stateful_step_count=8)


@pytest.mark.full
@pytest.mark.timeout(7200)
class TestAnyPersonForLong(AnyPerson.TestCase):
    """The same at length, and by chance: what it finds is printed as a short list of commands."""

    settings = settings(DRAWN, derandomize=False, max_examples=1000, stateful_step_count=25)
