"""What a proof comes to: receipt and state together, a hold, or the record that a crash kept from being made."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desk import Counter
from store import NOW

from daemon.artifacts import folder, levels
from daemon.artifacts.verify import Report
from daemon.control import homecoming
from daemon.domain.actions import Verify
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.errors import HomeportError, SpecError, WorkstationUnfit
from daemon.store import events, jobs
from remote_payload.contract import ArtifactFile, Manifest, Role, dump

WEIGHTS = b"weights" * 1000
PASSED = Report(True, "hash", (levels.passed(levels.BYTES, {"files": 1}),))
WRONG = Report(False, "hash", (levels.failed(levels.BYTES, "one chunk is another"),))
NOT_RUN = Report(False, "full", (levels.passed(levels.BYTES, {}), levels.not_run(levels.BEHAVIOUR, "no memory")))


class Proofs:
    """Answers each proof with `report`, level by level."""

    def __init__(self, counter: Counter, report: Report) -> None:
        self.counter, self.report, self.asked = counter, report, 0
        counter.desk.world.verify = self.prove

    async def prove(self, folder: Path, manifest: Manifest, base: Any, depth: Any, say: Any) -> Report:
        self.asked += 1
        assert (folder / "bot-Q8_0.gguf").read_bytes() == WEIGHTS
        for level in self.report.levels:
            say(level)
        return self.report


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[Counter]:
    """Its model was downloaded."""
    found = await Counter.open(tmp_path)
    (tmp_path / "base/tokenizer.json").write_text("{}")
    file = ArtifactFile(
        "run/out/bot-Q8_0.gguf", Role.GGUF, len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest(), [], "Q8_0"
    )
    text = dump(Manifest(found.job.id, 1, "n", 0.0, 8 << 20, [file]))
    incoming = found.driver.acting.home(found.look()).incoming
    incoming.mkdir(parents=True)
    (incoming / "bot-Q8_0.gguf").write_bytes(WEIGHTS)
    database = found.desk.database
    with database.write() as c:
        stored = {"manifest_json": text, "manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}
        jobs.change(c, jobs.get(c, found.job.id), NOW, database.epoch, **stored)
        for state in (JobState.PROVISIONED, JobState.SFT, JobState.GGUF, JobState.DOWNLOADED):
            jobs.move(c, jobs.get(c, found.job.id), state, NOW, database.epoch)
    yield found
    database.close()


def told(counter: Counter, kind: str) -> list[dict[str, Any]]:
    with counter.desk.database.read() as c:
        rows = c.exec_driver_sql("SELECT body FROM events WHERE kind = ? ORDER BY id", (kind,)).scalars()
        return [json.loads(body) for body in rows]


def assert_proven(counter: Counter) -> None:
    """State, folder and receipt say the same, of files that lie there."""
    s = counter.look()
    assert s.job.state is JobState.VERIFIED and s.receipt is not None
    assert s.job.model_dir == s.receipt.folder
    assert (Path(s.receipt.folder) / "bot-Q8_0.gguf").read_bytes() == WEIGHTS
    assert "bot-Q8_0.gguf" in [file["path"] for file in json.loads(s.receipt.files)]


async def test_a_proven_model_is_in_its_place_with_its_receipt(counter: Counter) -> None:
    proofs = Proofs(counter, PASSED)

    await counter.do(Verify())

    assert_proven(counter)
    assert proofs.asked == 1
    assert [level["name"] for level in told(counter, "verify.level")] == [levels.BYTES]


async def test_killed_before_the_record_it_is_made_without_another_proof(counter: Counter) -> None:
    """The folder is in its place and the database does not know: what lies there is what was proven."""
    home = counter.driver.acting.home(counter.look())
    home.settle_in(PASSED, counter.desk.folder / "log.txt", None)
    proofs = Proofs(counter, WRONG)

    await counter.do(Verify())

    assert_proven(counter)
    assert proofs.asked == 0


async def test_a_network_that_comes_and_goes_cuts_no_proof(counter: Counter) -> None:
    """It needs none, and each cut would begin it anew; a person's word ends it."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def prove(*_: Any) -> Report:
        begun.set()
        await go_on.wait()
        return PASSED

    counter.desk.world.verify = prove
    proving = asyncio.create_task(counter.driver._perform(counter.look(), Verify()))
    await begun.wait()

    for _ in range(3):
        await counter.driver.drop_link()
        await asyncio.sleep(0)
    go_on.set()
    await proving

    assert_proven(counter)


async def test_a_word_while_the_folder_is_moved_leaves_it_whole(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread goes on, so it is waited for: the next look finds what was proven, and proves nothing again."""
    begun, go_on = asyncio.Event(), threading.Event()
    settle, loop = folder.settle, asyncio.get_running_loop()

    def slowly(*args: Any, **more: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(60)
        return settle(*args, **more)

    monkeypatch.setattr(folder, "settle", slowly)
    proofs = Proofs(counter, PASSED)
    proving = asyncio.create_task(counter.driver._perform(counter.look(), Verify()))
    await begun.wait()
    counter.driver.interrupt()
    await asyncio.sleep(0)
    go_on.set()
    await proving

    await counter.do(Verify())

    assert_proven(counter)
    assert proofs.asked == 1


@pytest.mark.parametrize(("changes", "held"), [(False, HoldReason.VERIFY_FAILED), (True, HoldReason.NOT_VERIFIED)])
async def test_a_base_that_was_changed_here_is_no_wrong_model(
    counter: Counter, changes: bool, held: HoldReason
) -> None:
    """L3 compares with the folder as it is now: where the machine was given another, that is said."""
    base = counter.desk.folder / "base"
    sent = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in base.iterdir()}
    counter.desk.write(lambda c: events.add(c, "base.sent", NOW, job=counter.job.id, files=sent))
    if changes:
        (base / "config.json").write_text('{"another": 1}')
    Proofs(counter, Report(False, "full", (levels.failed(levels.IDENTITY, "another chat template"),)))

    await counter.do(Verify())

    assert counter.held is held
    assert ("put it back" in (counter.look().job.hold_detail or "")) is changes
    assert "another chat template" in (counter.look().job.hold_detail or "")


@pytest.mark.parametrize(("report", "held"), [(WRONG, HoldReason.VERIFY_FAILED), (NOT_RUN, HoldReason.NOT_VERIFIED)])
async def test_a_model_that_is_not_proven_holds_the_job(counter: Counter, report: Report, held: HoldReason) -> None:
    """What is wrong is another thing than what could not be looked at; neither is a receipt, and the files stay."""
    Proofs(counter, report)

    await counter.do(Verify())

    s = counter.look()
    assert (s.job.state, s.job.hold_reason, s.receipt) == (JobState.DOWNLOADED, held, None)
    assert s.job.hold_detail is not None and report.levels[-1].problem in s.job.hold_detail
    assert counter.driver.acting.home(s).incoming.is_dir()
    assert [level["name"] for level in told(counter, "verify.level")] == [level.name for level in report.levels]


@pytest.mark.parametrize(
    "error",
    [
        WorkstationUnfit("org/base: the model hub does not answer"),
        SpecError(["org/base: the model hub refuses access"]),
    ],
)
async def test_a_base_model_that_cannot_be_had_is_a_level_that_cannot_run(
    counter: Counter, monkeypatch: pytest.MonkeyPatch, error: HomeportError
) -> None:
    """This disk is not full and nothing is wrong in homeport; named by its level, as every other that could not run."""

    async def fail(*_: Any) -> None:
        raise error

    proofs = Proofs(counter, PASSED)
    monkeypatch.setattr(homecoming, "base_identity", fail)

    await counter.do(Verify())

    s = counter.look()
    assert (s.job.hold_reason, s.job.hold_detail) == (HoldReason.NOT_VERIFIED, f"L3 identity: not run: {error}")
    assert proofs.asked == 0
    monkeypatch.undo()
    await counter.do(Verify())
    assert_proven(counter)


async def test_a_file_changed_since_its_proof_holds_the_job(counter: Counter) -> None:
    """Between the proof and the receipt somebody wrote to it: what lies there was never read."""
    Proofs(counter, replace(PASSED, hashed=((1, len(WEIGHTS), 1),)))

    await counter.do(Verify())

    s = counter.look()
    assert (s.job.state, s.job.hold_reason, s.receipt) == (JobState.DOWNLOADED, HoldReason.VERIFY_FAILED, None)
    assert counter.driver.acting.home(s).incoming.is_dir()
