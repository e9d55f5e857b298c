"""Progress of uploads and of checkpoints coming home: what the database says while they move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from scripted_market import ScriptedMarket
from store import JOB, NOW, add_job, opened
from structlog.testing import capture_logs

from daemon.artifacts.verify import verify
from daemon.box.progress import Tally, TransferProgress
from daemon.clock import ManualClock
from daemon.control import transfers
from daemon.control.operate import Operator
from daemon.control.world import World
from daemon.domain.spec import JobSpec
from daemon.settings import Paths, Settings
from daemon.store import leader
from daemon.store.readonly import ReadModel
from daemon.store.shapes import Progress

SPEC = JobSpec.model_validate({"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}}).canonical_json()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database, clock = opened(tmp_path), ManualClock()
    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))
    with database.write() as c:
        add_job(c, spec_json=SPEC)
    operator = Operator(database, ScriptedMarket(), clock, settings)
    yield World(database, operator, clock, settings, cast(Any, None), cast(Any, None), verify)
    database.close()


def shown(world: World) -> Progress | None:
    return ReadModel(world.database.path, world.database.path.parent).job(JOB)["job"]["moving"]


def test_told_once_a_second_while_it_moves_and_not_after(world: World) -> None:
    """Bytes, pace and what was sent again; the end is in the log with its pace. The hashing before it is no part."""
    clock = cast(ManualClock, world.clock)
    with capture_logs() as said:
        with transfers.told(world, JOB, "UPLOAD") as follow:
            clock.advance(60.0)
            follow(TransferProgress(1_000, 10_000, 0))  # so much was there
            assert shown(world) is None
            clock.advance(2.0)
            follow(TransferProgress(5_000, 10_000, 300))
            told = shown(world)
            assert told == Progress(stage="UPLOAD", done=5_000, total=10_000, unit="BYTES", per_s=2_000.0, resent=300)
            clock.advance(0.5)
            follow(TransferProgress(10_000, 10_000, 300))
            assert shown(world) == told
        assert shown(world) is None
    (end,) = [line for line in said if line["event"] == "transfer.ended"]
    assert (end["bytes"], end["left"], end["seconds"], end["mb_s"]) == (9_000, 0, 2.5, 0.0)


def test_what_a_dead_daemon_left_is_not_shown_under_the_next(world: World) -> None:
    """A transfer that was cut short by a kill is of another epoch."""
    with pytest.raises(KeyboardInterrupt), transfers.told(world, JOB, "MIRROR") as follow:
        follow(TransferProgress(0, 10, 0))
        cast(ManualClock, world.clock).advance(2.0)
        follow(TransferProgress(5, 10, 0))
        assert shown(world) is not None
        leader.take(world.database, "machine-1", NOW, lambda c, epoch, why: None)
        assert shown(world) is None
        raise KeyboardInterrupt


def test_blocks_are_added_up() -> None:
    """What is sent once more is counted as such; a block that came twice does not make it more than all."""
    seen: list[TransferProgress] = []
    tally = Tally(seen.append, 100)
    tally.begin(60)
    tally.moved(40)
    tally.again(20)
    tally.moved(20)
    tally.moved(20)
    tally.begin(30)  # a file hashed wrong

    assert [(each.done, each.resent) for each in seen] == [(40, 0), (80, 0), (100, 20), (100, 20), (70, 50)]
