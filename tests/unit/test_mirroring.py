"""What the background mirror says when it cannot bring anything home."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pytest
from scripted_market import ScriptedMarket
from store import add_job, add_lease, opened

from daemon.artifacts.verify import verify
from daemon.box.pace import Pace
from daemon.clock import ManualClock
from daemon.control.mirror import CheckpointGone, Mirror
from daemon.control.mirroring import Mirroring
from daemon.control.operate import Operator
from daemon.control.telling import Teller
from daemon.control.world import World
from daemon.domain.records import BoxReport, StageRun
from daemon.domain.spec import JobSpec
from daemon.errors import LinkLost, TransferFailed
from daemon.settings import Paths, Settings
from daemon.store import events, leases
from daemon.store.readonly import ReadModel
from remote_payload import contract
from remote_payload.contract import Done, Output, Phase, Stage, Status

DONE = contract.dump(Done(Stage.SFT, "one", 1, [Output("run/sft/adapter/a.bin", 1, "0" * 64)], 1.0))
SPEC = JobSpec.model_validate({"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}}).canonical_json()
RUN = StageRun("job", 1, Stage.SFT, "one", 0, 1, 2, DONE)


@dataclass
class Desk:
    """A world, and what its person was told about coming home."""

    world: World
    folder: Path
    told: list[str] = field(default_factory=list)

    async def follow(self, mirroring: Mirroring, error: Exception) -> None:
        class Box:
            async def fetch_folder(self, *_: Any, **__: Any) -> Any:
                raise error

        mirroring.follow(cast(Any, Box()), [RUN], None)
        assert mirroring._task is not None
        await mirroring._task
        await Teller(self.world).run_once()

    def events(self) -> list[str]:
        page = ReadModel(self.world.database.path, self.folder).events("@last", 0)
        return [str(event["body"]["why"]) for event in page["events"] if event["kind"] == "mirror.failed"]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    database, clock = opened(tmp_path), ManualClock()
    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))
    told: list[str] = []

    async def tell(title: str, text: str, again: bool) -> bool:
        if "come home" in title:
            told.append(text)
        return True

    operator = Operator(database, ScriptedMarket(), clock, settings)
    with database.write() as c:
        add_job(c, "job", spec_json=SPEC)
    yield Desk(World(database, operator, clock, settings, tell, cast(Any, None), verify), tmp_path, told)
    database.close()


@pytest.mark.parametrize("error", [TransferFailed("a.bin is not what was promised"), ZeroDivisionError("a fault")])
async def test_what_ails_the_mirror_is_told_once(desk: Desk, error: Exception) -> None:
    """An event and a message, also for a fault of our own; the same again is no news, and the job is not disturbed."""
    mirroring = Mirroring(desk.world, "job", None)

    for _ in range(3):
        await desk.follow(mirroring, error)

    assert len(desk.told) == 1 and str(error) in desk.told[0]
    assert len(desk.events()) == 1 and str(error) in desk.events()[0]


async def test_a_full_disk_is_told_once_however_full(desk: Desk) -> None:
    """What is free differs at each try, and is no news."""
    mirroring = Mirroring(desk.world, "job", None)

    for free in (4096, 2048, 1024):
        await desk.follow(mirroring, OSError(errno.ENOSPC, f"No space left on device: {free} free"))

    assert len(desk.told) == len(desk.events()) == 1


async def test_a_lost_link_is_no_news(desk: Desk) -> None:
    """Being out of contact is told elsewhere, and mended."""
    await desk.follow(Mirroring(desk.world, "job", None), LinkLost("gone"))

    assert desk.told == [] and desk.events() == []


@pytest.mark.parametrize(
    ("seconds", "came", "pace", "line"),
    [
        (10.0, 125_000_000, None, {"mbps": 100.0}),
        (4.9, 125_000_000, None, None),
        (10.0, 19_999_999, None, None),
        (10.0, 125_000_000, Pace(1e6), None),
    ],
)
async def test_bringing_measures_the_line(
    desk: Desk, seconds: float, came: int, pace: Pace | None, line: dict[str, float] | None
) -> None:
    """125 MB in ten seconds are 100 Mbit/s. A few seconds or bytes say nothing, nor does what was held back."""
    with desk.world.database.write() as c:
        lease = add_lease(c, "job", bytes_down=7)

    class Box:
        async def fetch_folder(self, *_: Any, **__: Any) -> list[Output]:
            cast(ManualClock, desk.world.clock).advance(seconds)
            with desk.world.database.write() as c:
                leases.change(c, lease, bytes_down=7 + came)
            return [Output("a.bin", 1, "0" * 64)]

    await Mirroring(desk.world, "job", None).bring(cast(Any, Box()), [RUN], None, pace=pace)

    with desk.world.database.read() as c:
        noted = events.newest(c, "job", ("line.measured",))
    assert (noted.body if noted else None) == line


class KeepsNothing:
    """A machine whose disk has no links."""

    async def keep(self, checkpoint: PurePosixPath, nonce: str) -> PurePosixPath:
        return checkpoint


@pytest.mark.parametrize("left", [[], [Output("optimizer.pt", 1, "0" * 64)]], ids=["nothing", "a part"])
async def test_a_checkpoint_that_is_gone_meanwhile_did_not_come_home(desk: Desk, left: list[Output]) -> None:
    """Deleted since the status named it. Whoever stops the machine hears it; in the background the next one comes."""
    running = replace(RUN, done_json=None)
    status = Status("job", 1, Phase.RUNNING, Stage.SFT, "one", 0.0, "boot", 1, checkpoint="run/sft/checkpoint-3")
    report = BoxReport("job", 1, contract.dump(status), 1, None, None, 0, 0)
    mirroring = Mirroring(desk.world, "job", None)

    class Box(KeepsNothing):
        async def fetch_folder(self, *_: Any, **__: Any) -> list[Output]:
            return left

    with pytest.raises(CheckpointGone, match="checkpoint-3"):
        await mirroring.bring(cast(Any, Box()), [running], status)
    mirroring.follow(cast(Any, Box()), [running], report)
    assert mirroring._task is not None
    await mirroring._task

    with desk.world.database.read() as c:
        assert events.newest(c, "job", ("checkpoint.home", "mirror.failed")) is None


@pytest.mark.parametrize("still_there", [True, False])
async def test_after_a_cut_the_same_checkpoint_goes_on(desk: Desk, still_there: bool) -> None:
    """Training has made a newer one meanwhile: begun anew with each cut, none would ever come home. What the machine
    could not keep is no loss: the newer one comes."""
    running, asked = replace(RUN, done_json=None), list[str]()

    class Box:
        async def keep(self, checkpoint: PurePosixPath, nonce: str) -> PurePosixPath:
            return PurePosixPath("run/kept", nonce, checkpoint.name)

        async def fetch_folder(self, remote: str, into: Path, **_: Any) -> list[Output]:
            asked.append(remote)
            into.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nobody else has this thread
            if len(asked) == 1:
                (into / "optimizer.pt.part").write_bytes(b"half")
                raise LinkLost("cut")
            if into.name == "checkpoint-100" and not still_there:
                return []
            (into / contract.CHECKPOINT_MANIFEST).write_text("{}")
            return [Output(contract.CHECKPOINT_MANIFEST, 2, "0" * 64)]

    def training(step: int) -> Status:
        return Status(
            "job", 1, Phase.RUNNING, Stage.SFT, "one", 0.0, "boot", 1, checkpoint=f"run/sft/checkpoint-{step}"
        )

    mirroring = Mirroring(desk.world, "job", None)

    for step in (100, 900, 900):
        await mirroring._try(cast(Any, Box()), [running], training(step))

    assert asked == [f"run/kept/one/checkpoint-{step}" for step in (100, 100, 900)]
    home = sorted(path.parent.name for path in mirroring.mirror.folder.rglob(contract.CHECKPOINT_MANIFEST))
    assert home == ["checkpoint-100", "checkpoint-900"][not still_there :]


async def test_who_waits_for_a_rescue_gets_the_newest(desk: Desk) -> None:
    """The contract ends soon: what was begun of an older checkpoint would come before what training has made since."""
    running, asked = replace(RUN, done_json=None), list[str]()
    mirroring = Mirroring(desk.world, "job", None)
    begun = mirroring.mirror.folder / "SFT-one/run/sft/checkpoint-100"
    begun.mkdir(parents=True)
    (begun / "optimizer.pt.part").write_bytes(b"half")

    class Box(KeepsNothing):
        async def fetch_folder(self, remote: str, into: Path, **_: Any) -> list[Output]:
            asked.append(remote)
            into.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nobody else has this thread
            (into / contract.CHECKPOINT_MANIFEST).write_text("{}")
            return [Output(contract.CHECKPOINT_MANIFEST, 2, "0" * 64)]

    said = Status("job", 1, Phase.RUNNING, Stage.SFT, "one", 0.0, "boot", 1, checkpoint="run/sft/checkpoint-900")
    await mirroring.bring(cast(Any, Box()), [running], said)

    assert asked == ["run/sft/checkpoint-900"]


def test_a_checkpoint_by_a_name_that_no_file_can_have_is_none(tmp_path: Path) -> None:
    """What the box says of its newest is not trusted: asked of this disk, such a name is an error of ours."""
    (tmp_path / "SFT-one/run/sft").mkdir(parents=True)
    said = Status(
        "job", 1, Phase.RUNNING, Stage.SFT, "one", 0.0, "boot", 1, checkpoint="run/sft/checkpoint-" + "9" * 300
    )

    assert Mirror(tmp_path).lacks_checkpoint(RUN, said) is None


def mirrored(folder: Path) -> tuple[StageRun, Path]:
    """A finished SFT whose adapter lies in the mirror, and that file."""
    path = "run/sft/adapter/adapter_model.safetensors"
    output = Output(path, 7, hashlib.sha256(b"weights").hexdigest())
    for name, content in ((path, b"weights"), ("run/stages/one/done.json", b"{}")):
        (folder / "SFT-one" / name).parent.mkdir(parents=True)
        (folder / "SFT-one" / name).write_bytes(content)
    done = contract.dump(Done(Stage.SFT, "one", 1, [output], 1.0))
    return replace(RUN, done_json=done), folder / "SFT-one" / path


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(b"Weights"), lambda file: file.unlink()])
def test_an_adapter_that_this_disk_did_not_keep_is_not_trained_on(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    """A new machine would go on from it as if the stage were done, and nothing later would tell."""
    run, file = mirrored(tmp_path)
    assert Mirror(tmp_path).kept([run]) == [run]

    damage(file)

    assert Mirror(tmp_path).kept([run]) == []


def test_what_goes_up_is_what_was_promised(tmp_path: Path) -> None:
    """Damage that comes after the choice makes the upload fail: it is not the hash of the damage that counts."""
    run, file = mirrored(tmp_path)
    file.write_bytes(b"Weights")

    first, _marker = Mirror(tmp_path).uploads([run], [])

    assert (first.local, first.sha256) == (file, hashlib.sha256(b"weights").hexdigest())


async def test_what_was_begun_of_an_earlier_checkpoint_makes_room(tmp_path: Path) -> None:
    """On a slow line the machine deletes each before all of it was fetched: what lay here of them would fill the disk
    that the model needs."""

    def half(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "optimizer.pt.part").write_bytes(b"half")

    class Box(KeepsNothing):
        async def fetch_folder(self, remote: str, into: Path, **_: Any) -> list[Output]:
            half(into)
            return []

    for step in (100, 200, 300):
        with pytest.raises(CheckpointGone):
            await Mirror(tmp_path).bring_checkpoint(cast(Any, Box()), RUN, PurePosixPath(f"run/sft/checkpoint-{step}"))

    assert [path.name for path in (tmp_path / "SFT-one/run/sft").iterdir()] == ["checkpoint-300"]
