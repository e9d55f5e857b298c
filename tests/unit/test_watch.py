"""One look at a box: what it says is kept as far as it makes sense, and only its own marker ends a stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from store import JOB, NOW, add_job, opened

from daemon.box.box import BoxStatus
from daemon.clock import ManualClock
from daemon.control import watch
from daemon.control.watch import MAX_EVENT_BYTES, Seen, look
from daemon.domain.records import Job, StageRun
from daemon.errors import LinkLost, TransferFailed
from daemon.store import jobs, reports, stages
from remote_payload.contract import Done, Failed, Phase, Stage, Status


@dataclass
class Box:
    """`events` and `log` as far as they were written; `end`: the marker of the stage; `alive`: its runner."""

    events: bytes = b""
    log: bytes = b""
    end: Done | Failed | None = None
    alive: bool = True
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def status(self) -> BoxStatus:
        said = Status(JOB, 1, Phase.RUNNING, Stage.SFT, "n", 0.0, "boot", 1)
        return BoxStatus(self.alive, said, "boot", len(self.events), len(self.log))

    async def read_lines(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        self.asked.append((name, offset))
        chunk = getattr(self, name)[offset : offset + limit]
        return chunk, offset + len(chunk)

    async def stage_end(self, nonce: str) -> Done | Failed | None:
        return self.end


class Looker:
    """Looks at boxes for a job in SFT."""

    def __init__(self, folder: Path) -> None:
        self.log_file, self.database, self.clock = folder / "log.txt", opened(folder), ManualClock(wall=NOW)
        with self.database.write() as c:
            add_job(c)

    @property
    def job(self) -> Job:
        with self.database.read() as c:
            return jobs.get(c, JOB)

    @property
    def run(self) -> StageRun:
        with self.database.read() as c:
            return stages.of_attempt(c, self.job)[0]

    async def at(self, box: Box) -> Seen:
        return await look(cast(Any, box), self.job, self.run, self.database, self.clock, self.log_file)

    @property
    def is_alive(self) -> bool:
        with self.database.read() as c:
            report = reports.get(c, JOB)
        return report is not None and bool(report.alive)

    @property
    def steps(self) -> list[tuple[int, float]]:
        with self.database.read() as c:
            return [(step, loss) for step, loss in c.exec_driver_sql("SELECT step, loss FROM metrics ORDER BY step")]


@pytest.fixture
def looker(tmp_path: Path) -> Iterator[Looker]:
    found = Looker(tmp_path)
    yield found
    found.database.close()


def step(number: int, loss: float, **more: Any) -> bytes:
    return json.dumps({"kind": "step", "stage": "SFT", "t": 1.0, "step": number, "loss": loss} | more).encode() + b"\n"


async def test_a_line_without_sense_costs_only_itself(looker: Looker) -> None:
    """Between two steps that are kept: no JSON, another shape, no stage of ours, a number or a line beyond measure."""
    nonsense = [
        b"not json\n",
        b"[1]\n",
        b"[" * 20_000 + b"\n",
        step(7, 1.0, stage="RLHF"),
        step(8, 1e300),
        step(9, 1.0, t=None),
        step(10, 1.0, padding="x" * MAX_EVENT_BYTES),
    ]

    await looker.at(Box(step(1, 2.5) + b"".join(nonsense) + step(2, 2.0)))

    assert looker.steps == [(1, 2.5), (2, 2.0)]


async def test_a_look_that_does_not_come_to_its_end_is_no_contact(looker: Looker) -> None:
    """The status is answered and the log is not: since when it is out of contact stays as it was."""

    class Half(Box):
        async def read_lines(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
            raise LinkLost("no answer in time")

    with looker.database.write() as c:
        reports.put(c, JOB, 1, lost_since=NOW)
    with pytest.raises(LinkLost):
        await looker.at(Half())

    with looker.database.read() as c:
        report = reports.get(c, JOB)
    assert report is not None and report.lost_since == NOW


async def test_nothing_is_read_twice(looker: Looker) -> None:
    """A look goes on where the last one ended; the log on this disk is the machine's, without what a terminal obeys."""
    box = Box(step(1, 2.5), b"loading\n\x1b[2Jready\x07\n")
    await looker.at(box)
    box.events, box.log = box.events + step(2, 2.0), box.log + b"step 2\n"
    box.asked.clear()

    await looker.at(box)

    assert looker.steps == [(1, 2.5), (2, 2.0)]
    assert looker.log_file.read_text() == "loading\nready\nstep 2\n"
    assert min(offset for _, offset in box.asked) > 0


@pytest.mark.parametrize("alive", [True, False])
async def test_the_stage_is_done_when_its_marker_says_so(looker: Looker, alive: bool) -> None:
    """Whether its runner has ended by then or not."""
    done = Done(Stage.SFT, looker.run.nonce, 1, [], 1.0)

    assert (await looker.at(Box(end=done, alive=alive))).ended
    assert looker.run.done_json is not None


@pytest.mark.parametrize("wrong", [{"stage": Stage.DPO}, {"nonce": "another"}])
async def test_the_marker_of_another_stage_ends_nothing(looker: Looker, wrong: dict[str, Any]) -> None:
    given = {"stage": Stage.SFT, "nonce": looker.run.nonce} | wrong

    with pytest.raises(TransferFailed, match="expected"):
        await looker.at(Box(end=Done(attempt=1, outputs=[], seconds=1.0, **given)))

    assert looker.run.done_json is None


async def test_why_a_stage_failed(looker: Looker) -> None:
    """In the box's words, as far as a screen can take them, with what it could be resumed from."""
    failed = Failed(
        Stage.SFT, looker.run.nonce, 1, 3, "loss is nan", "\x1b[31mstep 12" + "!" * 2000, "run/sft/checkpoint-10"
    )

    seen = await looker.at(Box(end=failed))

    assert not seen.ended and seen.failure is not None and len(seen.failure) == 1000
    assert seen.failure.startswith("loss is nan (exit 3, newest whole checkpoint run/sft/checkpoint-10) step 12!")


@pytest.mark.parametrize("alive", [True, False])
async def test_a_runner_that_is_gone_without_a_marker_died(looker: Looker, alive: bool) -> None:
    """It is the plan that starts the stage again; a runner that lives is waited for."""
    assert await looker.at(Box(alive=alive)) == Seen()
    assert looker.is_alive is alive


@dataclass
class Flood(Box):
    """Its log grows whenever it is read, so that no reader ever reaches the end."""

    async def read_lines(self, name: str, offset: int, limit: int) -> tuple[bytes, int]:
        if name == "events":
            return b"", offset
        self.asked.append((name, offset))
        assert len(self.asked) < 1000, "the look does not end"
        return b"spam\n", offset + limit


async def test_a_log_without_end_holds_up_no_look(looker: Looker) -> None:
    """While a look lasts nothing is decided, so no limit of money or time would hold. The next one goes on from there,
    and in the end no more of it is taken: it would fill this disk."""
    box = Flood(end=Done(Stage.SFT, looker.run.nonce, 1, [], 1.0))

    assert (await looker.at(box)).ended
    assert len(looker.log_file.read_text().splitlines()) == watch.LOOK_BLOCKS
    for _ in range(2 * watch.MOST_BYTES // (watch.LOOK_BLOCKS * watch.READ_LIMIT)):
        box.asked.clear()
        await looker.at(box)

    assert len(looker.log_file.read_text().splitlines()) == watch.MOST_BYTES // watch.READ_LIMIT
    assert box.asked == []  # nor fetched to be thrown away
