"""`pull` and `fetch` as the daemon does them: over real SSH, with a market that says what a test wrote down."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from boxes import SECRET, LoopbackBox, loopback_box

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import store
from scripted_market import ScriptedMarket, instance

from daemon.artifacts.verify import verify
from daemon.box.box import Box
from daemon.box.progress import TransferProgress
from daemon.cli import bring
from daemon.clock import ManualClock
from daemon.control import byhand
from daemon.control.byhand import ByHand
from daemon.control.operate import Operator
from daemon.control.world import World
from daemon.errors import HostKeyChanged, NoSuchJob, Refused
from daemon.settings import Paths, Settings
from daemon.store import leases, stages
from remote_payload import contract
from remote_payload.contract import Checkpoint, Output, Stage

MODEL = b"GGUF" + b"x" * 9_000_000


@asynccontextmanager
async def by_hand(folder: Path) -> AsyncIterator[tuple[LoopbackBox, ByHand]]:
    async with loopback_box(folder) as there:
        database, clock = store.opened(folder), ManualClock()
        market = ScriptedMarket(instances=[replace(instance(77), direct=("127.0.0.1", there.port))])
        settings = Settings(Paths(folder, folder, folder / "models"))
        operator = Operator(database, market, clock, settings)

        def connect(address: Any, count: Any) -> Box:
            return Box(replace(address, python=sys.executable), there.key, on_bytes=count)

        yield there, ByHand(World(database, operator, clock, settings, cast(Any, None), connect, verify))
        database.close()


async def ended(hands: ByHand, started: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(240):
        while (seen := hands.view(started["transfer"]))["state"] == "RUNNING":  # noqa: ASYNC110 - as jobctl follows it
            await asyncio.sleep(0.05)
    return seen


def lay(there: LoopbackBox) -> str:
    """Files as somebody's own script left them; returns the pattern that means them."""
    out = there.home / "out"
    (out / "adapter").mkdir(parents=True)
    (out / "bot-Q8_0.gguf").write_bytes(MODEL)
    (out / "adapter/config.json").write_text("{}")
    (out / "link").symlink_to("/etc/passwd")
    return f"{out}/**"


async def test_files_of_a_machine_rented_by_hand(tmp_path: Path) -> None:
    """Nothing before a person has compared the key; then every file hashed, the floor told, and nothing sent twice."""
    async with by_hand(tmp_path) as (there, hands):
        pattern, to = lay(there), str(tmp_path / "home")
        fingerprint = asyncssh.import_public_key(there.host_key).get_fingerprint()
        with pytest.raises(Refused, match="nobody has confirmed") as refusal:
            await hands.fetch(77, pattern, to, None)
        assert f"--host-key {fingerprint}" in str(refusal.value.hint)
        with pytest.raises(HostKeyChanged):
            await hands.fetch(77, pattern, to, "SHA256:another")

        started = await hands.fetch(77, pattern, to, fingerprint)
        seen = await ended(hands, started)

        assert started["job"] is None
        assert seen["state"] == "DONE", seen["problem"]
        assert (tmp_path / "home/bot-Q8_0.gguf").read_bytes() == MODEL
        assert (tmp_path / "home/adapter/config.json").read_text() == "{}"
        model = next(file for file in seen["files"] if file["path"].endswith(".gguf"))
        assert model["sha256"] == hashlib.sha256(MODEL).hexdigest()
        assert (model["floor"], model["above_floor"]) == (5_000_000_000, False)
        assert not (tmp_path / "home/link").exists()

        (tmp_path / "hosts/77").write_text("")  # the disk was full: a key that was compared is not known any more
        with pytest.raises(Refused, match="nobody has confirmed"):
            await hands.fetch(77, pattern, to, None)
        (tmp_path / "hosts/77").write_text(there.host_key)
        again = await ended(hands, await hands.fetch(77, pattern, to, None))
        assert again["state"] == "DONE" and again["done"] == again["total"]
        asked = cast(ScriptedMarket, hands.world.operator.market).asked
        assert {call for call, _ in asked} == {"attach_key"}


async def test_a_jobs_own_machine_is_called_so(tmp_path: Path) -> None:
    """Who fetches from it must not be told to end it in the console: its model may not be verified yet."""
    async with by_hand(tmp_path) as (there, hands):
        rented(hands, there)

        started = await hands.fetch(77, lay(there), str(tmp_path / "home"), None)

        assert started["job"] == store.JOB
        assert (await ended(hands, started))["state"] == "DONE"
    assert f"the machine of job {store.JOB}, which goes on" in bring._still_there(77, store.JOB)
    assert "end it" in bring._still_there(78, None) and "end it" not in bring._still_there(77, store.JOB)


def test_the_pace_is_of_what_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the hashing before it nor what an earlier try brought counts."""
    clock = iter([60.0, 62.0, 62.0])
    monkeypatch.setattr(byhand.time, "monotonic", lambda: next(clock))
    transfer = byhand.Transfer(Path("/here"))
    transfer.follow(TransferProgress(8_000, 10_000, 0))  # after a minute of hashing
    transfer.follow(TransferProgress(9_000, 10_000, 0))

    seen = transfer.view()

    assert (seen["per_s"], seen["eta_s"]) == (500, 2)


async def test_a_pattern_that_means_nothing(tmp_path: Path) -> None:
    """The pattern is named, and nothing is made here."""
    async with by_hand(tmp_path) as (there, hands):
        fingerprint = asyncssh.import_public_key(there.host_key).get_fingerprint()

        seen = await ended(hands, await hands.fetch(77, "/nowhere/*.gguf", str(tmp_path / "home"), fingerprint))

        assert seen["state"] == "FAILED" and "/nowhere/*.gguf" in seen["problem"]
        assert not (tmp_path / "home").exists()
        with pytest.raises(NoSuchJob, match="no instance 78"):
            await hands.fetch(78, "*", str(tmp_path), None)


def train(there: LoopbackBox, step: int) -> None:
    folder = there.root / f"run/sft/checkpoint-{step}"
    folder.mkdir(parents=True)
    content = str(step).encode() * 100_000
    (folder / "adapter.bin").write_bytes(content)
    promised = [Output("adapter.bin", len(content), hashlib.sha256(content).hexdigest())]
    (folder / contract.CHECKPOINT_MANIFEST).write_text(contract.dump(Checkpoint(Stage.SFT, step, "print", promised)))


def rented(hands: ByHand, there: LoopbackBox, **given: Any) -> None:
    """The job, and its machine as the daemon knows it."""
    with hands.world.database.write() as c:
        store.add_job(c)
        lease = store.add_lease(c)
        known = {"host_key": there.host_key, "root": str(there.root), "python": sys.executable, "challenge": SECRET}
        leases.change(c, leases.get(c, lease).id, **{"direct": f"127.0.0.1:{there.port}", **known, **given})


def mirrored(hands: ByHand, there: LoopbackBox, step: int) -> Path:
    """What came home of a checkpoint that is on the machine."""
    with hands.world.database.read() as c:
        (nonce,) = stages.lineage(c, store.JOB, "SFT")
    home = hands.world.mirror_folder(store.JOB) / f"SFT-{nonce}" / f"run/sft/checkpoint-{step}"
    shutil.copytree(there.root / f"run/sft/checkpoint-{step}", home)
    return home


def assert_whole(folder: Path, step: int) -> None:
    assert (folder / "adapter.bin").read_bytes() == str(step).encode() * 100_000
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == step


@pytest.mark.parametrize(("wanted", "step"), [("latest", 200), ("100", 100)])
async def test_a_checkpoint_is_pulled_by_hand(tmp_path: Path, wanted: str, step: int) -> None:
    """The newest, or an older one, whole, into the folder that was given, whatever stage runs; bytes are counted."""
    async with by_hand(tmp_path) as (there, hands):
        for each in (100, 200):
            train(there, each)
        (there.root / "run/sft/checkpoint-300").mkdir()  # being written
        (there.root / "run/sft/checkpoint-0400").mkdir()
        (there.root / "run/sft/checkpoint-0400/checkpoint.json").write_text("{}")  # no name that we give
        rented(hands, there)

        seen = await ended(hands, await hands.pull(store.JOB, wanted, str(tmp_path / "here")))

        assert seen["state"] == "DONE", seen["problem"]
        assert_whole(tmp_path / f"here/sft/checkpoint-{step}", step)
        assert seen["done"] == seen["total"] >= 300_000
        with pytest.raises(Refused, match=r"no whole checkpoint of step 150.*there are: SFT 100, SFT 200$"):
            await hands.pull(store.JOB, "150", str(tmp_path / "here"))


async def test_one_that_the_machine_has_deleted_comes_from_here(tmp_path: Path) -> None:
    """It came home before; damage of it here is found by its own hashes."""
    async with by_hand(tmp_path) as (there, hands):
        for each in (100, 200):
            train(there, each)
        rented(hands, there)
        kept = mirrored(hands, there, 100)
        shutil.rmtree(there.root / "run/sft/checkpoint-100")

        seen = await ended(hands, await hands.pull(store.JOB, "100", str(tmp_path / "here")))

        assert seen["state"] == "DONE", seen["problem"]
        assert_whole(tmp_path / "here/sft/checkpoint-100", 100)
        assert seen["done"] == seen["total"] > 300_000
        (kept / "adapter.bin").write_bytes(b"rotten")
        rotten = await ended(hands, await hands.pull(store.JOB, "100", str(tmp_path / "there")))
        assert rotten["state"] == "FAILED" and "adapter.bin is not what" in rotten["problem"]
        assert not (tmp_path / "there/sft/checkpoint-100/checkpoint.json").exists()


@pytest.mark.parametrize("machine", [{"direct": "127.0.0.1:9"}, {"host_key": None}, {"status": "exited"}])
async def test_without_an_answering_machine_the_newest_is_that_at_home(tmp_path: Path, machine: dict[str, Any]) -> None:
    """Out of contact, not proven yet, or stopped."""
    async with by_hand(tmp_path) as (there, hands):
        for each in (100, 200):
            train(there, each)
        rented(hands, there, **machine)
        mirrored(hands, there, 100)

        seen = await ended(hands, await hands.pull(store.JOB, "latest", str(tmp_path / "here")))

        assert seen["state"] == "DONE", seen["problem"]
        assert_whole(tmp_path / "here/sft/checkpoint-100", 100)
        with pytest.raises(Refused, match=r"no whole checkpoint of step 200.*there are: SFT 100") as refusal:
            await hands.pull(store.JOB, "200", str(tmp_path / "here"))
        assert ("does not answer" in str(refusal.value)) is ("direct" in machine)


async def test_a_job_without_checkpoints_has_nothing_to_pull(tmp_path: Path) -> None:
    """Before it has trained, and with a step that is no number."""
    async with by_hand(tmp_path) as (_, hands):
        with hands.world.database.write() as c:
            store.add_job(c)

        with pytest.raises(Refused, match=r"no whole checkpoint, on its machine or here; there are: none$"):
            await hands.pull(store.JOB, "latest", str(tmp_path))
        with pytest.raises(Refused, match="expected latest or a step"):
            await hands.pull(store.JOB, "newest", str(tmp_path))
