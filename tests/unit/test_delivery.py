"""Whether files can be rebuilt on this computer, and what a person is told when they cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from desk import Desk
from shell_python import ShellPython

from daemon import platform
from daemon.artifacts import rebuild
from daemon.artifacts.rebuild import INSTALL
from daemon.control import delivery, quotes
from daemon.domain.deliver import Delivery
from daemon.domain.estimate import Estimate
from daemon.domain.spec import JobSpec

HUB, COMMIT = "owner/name-1B", "c0" * 20


class Usage(NamedTuple):
    """As shutil.disk_usage says it."""

    total: int
    used: int
    free: int


class Computer:
    """One that can rebuild anything; `memory` and `room` are what it has free."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch, self.desk = folder, monkeypatch, Desk(folder)
        self.lacks("")
        self.memory(1 << 40)
        self.room(1 << 40)

    def lacks(self, package: str) -> None:
        self.python = ShellPython(self.folder / "python", lacking=f"echo {package}" if package else "")
        self.desk.world.settings = replace(self.desk.world.settings, box_python=self.python.path)

    def memory(self, free: int) -> None:
        self.monkeypatch.setattr(platform, "memory_available", lambda: free)

    def room(self, free: int) -> None:
        self.monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))

    def estimate(self, spec: JobSpec) -> Estimate:
        return quotes.expected(spec, self.folder, {})

    async def problem(self, spec: JobSpec) -> str:
        return await delivery.problem(self.desk.world, spec, self.folder, self.estimate(spec), COMMIT)

    async def choose(self, spec: JobSpec, measured: float | None) -> Delivery:
        world, expected = self.desk.world, self.estimate(spec)
        chosen, _ = await delivery.choose(world, spec, self.folder, expected, measured=measured, revision=COMMIT)
        return chosen


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Computer]:
    found = Computer(tmp_path, monkeypatch)
    yield found
    found.desk.database.close()


def spec_of(*gguf: str, **more: Any) -> JobSpec:
    given = {"version": 1, "name": "n", "model": HUB, "sft": {"data": "-"}, "export": {"gguf": gguf or ("Q8_0",)}}
    return JobSpec.model_validate(given | {"deliver": "auto"} | more)


async def test_nothing_stands_in_the_way(computer: Computer) -> None:
    assert await computer.problem(spec_of("Q8_0", "Q4_K_M")) == ""


async def test_k_quants_alone_are_not_worth_it(computer: Computer) -> None:
    """They differ from computer to computer, whatever this one has: its interpreter is not even asked."""
    assert "only K-quants" in await computer.problem(spec_of("Q4_K_M", "Q6_K"))
    assert computer.python.calls == []


async def test_an_interpreter_without_the_packages(computer: Computer) -> None:
    """Named, with the command that mends it."""
    computer.lacks("torch")

    assert (await computer.problem(spec_of())).endswith(f"{computer.python.path} lacks torch ({INSTALL})")


@pytest.mark.parametrize(
    ("does", "patience_s", "why"),
    [
        ("echo no module >&2; exit 1", 60.0, "cannot be asked for its packages: rebuild ended with code 1: no module"),
        ("exec sleep 600", 0.2, "did not say within 0.2 s which packages it has"),
    ],
)
async def test_an_interpreter_that_does_not_answer(
    computer: Computer, monkeypatch: pytest.MonkeyPatch, does: str, patience_s: float, why: str
) -> None:
    """Whatever stands in its way is said: who named it in config.toml has to find out what is wrong."""
    monkeypatch.setattr(rebuild, "ANSWER_S", patience_s)
    ShellPython(computer.folder / "python", lacking=does)

    assert f"{computer.python.path} {why}" in await computer.problem(spec_of())


async def test_an_interpreter_that_cannot_be_run(computer: Computer) -> None:
    computer.python.path.chmod(0o644)
    assert "cannot be asked for its packages: [Errno 13]" in await computer.problem(spec_of())

    computer.python.path.unlink()
    assert f"{computer.python.path} is not there" in await computer.problem(spec_of())


async def test_too_little_memory(computer: Computer) -> None:
    """A byte for each of 1e9 parameters beside three GB: a computer that swaps answers nobody."""
    computer.memory(4_000_000_000)
    assert await computer.problem(spec_of()) == ""

    computer.memory(3_999_999_999)
    assert await computer.problem(spec_of()) == "4.0 GB of memory free, 4.0 GB needed to rebuild"


async def test_too_little_room(computer: Computer) -> None:
    """For the finished files, and for weights that must come from the hub; those of an earlier job are here already."""
    finished = computer.estimate(spec_of()).model_bytes
    computer.room(finished + 1_999_999_999)
    assert "models: 3.1 GB free, 3.1 GB needed to rebuild" in await computer.problem(spec_of())

    computer.desk.world.workshop.base_root(HUB, COMMIT).mkdir(parents=True)
    assert await computer.problem(spec_of()) == ""
    computer.room(finished - 1)
    assert "needed to rebuild" in await computer.problem(spec_of())


@pytest.mark.parametrize(
    ("line", "measured", "said"),
    [
        (None, None, "at 50 Mbit/s, assumed:"),
        (None, 90.0, "at 90 Mbit/s, as measured:"),
        (20, 90.0, "at 20 Mbit/s, as limits.line says:"),
        (120, 90.0, "at 90 Mbit/s, as measured:"),
    ],
)
async def test_the_line_that_the_choice_reckons_with(
    computer: Computer, line: int | None, measured: float | None, said: str
) -> None:
    """And where it is known from: a person who finds the choice odd sees which number to doubt."""
    assert (await computer.choose(spec_of(limits={"line": line}), measured)).why.startswith(said)


async def test_a_job_file_that_says_download(computer: Computer) -> None:
    """Nobody asks whether this computer could do anything else."""
    chosen = await computer.choose(spec_of(deliver="download"), None)

    assert chosen == Delivery("download", "the job file says so") and computer.python.calls == []
