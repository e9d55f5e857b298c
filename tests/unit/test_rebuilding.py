"""What was built here becomes part of a download, or is left alone."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from scripted_market import ScriptedMarket
from store import add_job, opened

from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control.mirroring import Mirroring
from daemon.control.operate import Operator
from daemon.control.rebuilding import Rebuilding
from daemon.control.world import World
from daemon.domain import deliver
from daemon.domain.records import StageRun
from daemon.domain.spec import JobSpec
from daemon.settings import Paths, Settings
from daemon.store import events
from remote_payload.contract import ArtifactFile, ContractError, Manifest, Role, Stage

SPEC = JobSpec.model_validate(
    {
        "version": 1,
        "name": "n",
        "model": "any/m",
        "sft": {"data": "-"},
        "deliver": "rebuild",
        "export": {"gguf": ("Q8_0", "Q4_K_M")},
    }
)
RUN = StageRun("job", 1, Stage.SFT, "one", 0, 1, 2, None)
CHUNK = 4
MODEL, WEIGHTS = b"0123456789", b"adapter"


def described(path: str, role: Role, content: bytes, **changes: Any) -> ArtifactFile:
    chunks = [hashlib.sha256(content[i : i + CHUNK]).hexdigest() for i in range(0, len(content), CHUNK)]
    sha256 = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(ArtifactFile(path, role, len(content), sha256, chunks), **changes)


def manifest_of(gguf: bytes = MODEL, path: str = "run/out/n-Q8_0.gguf", *more: ArtifactFile) -> Manifest:
    adapter = described("run/out/adapter/adapter_model.safetensors", Role.ADAPTER, WEIGHTS)
    files = [described(path, Role.GGUF, gguf, quant="Q8_0"), adapter, *more]
    return Manifest("job", 1, "two", 0.0, CHUNK, files)


class Bench:
    """A job whose Q8_0 is built and whose adapter is mirrored."""

    def __init__(self, folder: Path) -> None:
        self.database, clock = opened(folder), ManualClock()
        paths = Paths(folder, folder, folder / "models")
        operator = Operator(self.database, ScriptedMarket(), clock, Settings(paths))
        nothing = cast(Any, None)
        world = World(self.database, operator, clock, Settings(paths), nothing, nothing, verify)
        with self.database.write() as c:
            add_job(c, "job", spec_json=SPEC.canonical_json())
        self.rebuilding = Rebuilding(world, "job", SPEC, {}, Mirroring(world, "job", None))
        self.incoming = folder / "models" / ".incoming-job"
        adapter = self.rebuilding.mirroring.mirror.adapter(RUN)
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(WEIGHTS)
        self.rebuilding._root = folder / "models" / "made"
        (self.rebuilding._root / "run/out").mkdir(parents=True)
        self.made = self.rebuilding._root / "run/out/n-Q8_0.gguf"
        self.made.write_bytes(MODEL)
        self.rebuilding._add(described("run/out/n-Q8_0.gguf", Role.GGUF, MODEL, quant="Q8_0"))

    def hand_over(self, manifest: Manifest) -> int:
        return self.rebuilding._hand_over(manifest, self.incoming, RUN)

    def parts(self) -> dict[str, bytes]:
        files = (file for file in self.incoming.rglob("*") if file.is_file())
        return {file.relative_to(self.incoming).as_posix(): file.read_bytes() for file in files}

    def compared(self) -> dict[str, Any] | None:
        return self._newest("rebuild.compared")

    def failed(self) -> dict[str, Any] | None:
        return self._newest("rebuild.failed")

    def _newest(self, kind: str) -> dict[str, Any] | None:
        with self.database.read() as c:
            found = events.newest(c, "job", (kind,))
        return found.body if found else None


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.close()


def test_what_agrees_need_not_be_fetched(bench: Bench) -> None:
    """File and adapter lie where the download goes on from, and count as here."""
    assert bench.hand_over(manifest_of()) == len(MODEL) + len(WEIGHTS)
    assert bench.parts() == {"n-Q8_0.gguf.part": MODEL, "adapter/adapter_model.safetensors.part": WEIGHTS}
    assert not bench.made.exists()


def test_a_chunk_that_agrees_is_worth_the_file(bench: Bench) -> None:
    """Of three chunks the last, shorter one differs: eight bytes are here, and the event says so."""
    assert bench.hand_over(manifest_of(b"01234567XY")) == 8 + len(WEIGHTS)
    assert bench.compared() == {"quant": "Q8_0", "size": 10, "agreeing": 8}
    assert "n-Q8_0.gguf.part" in bench.parts()


def test_what_agrees_nowhere_is_left(bench: Bench) -> None:
    """Shifted by a byte every chunk is another: the file is no beginning of anything."""
    assert bench.hand_over(manifest_of(b"x0123456789")) == len(WEIGHTS)
    assert list(bench.parts()) == ["adapter/adapter_model.safetensors.part"]
    assert bench.made.exists()


@pytest.mark.parametrize(
    "path", ["run/out/../../../evil", "/tmp/evil", "run/evil", "run/out/C:evil", "run/out/n-Q8_0.gguf.part/x"]
)
def test_a_hostile_path_changes_nothing(bench: Bench, path: str) -> None:
    """Names from the machine are checked before the first of them is used."""
    twin = described("run/out/n-Q8_0.gguf", Role.LOG, b"")
    with pytest.raises(ContractError):
        bench.hand_over(manifest_of(MODEL, path, twin))

    assert bench.parts() == {} and bench.made.read_bytes() == MODEL and bench.compared() is None


def test_a_manifest_of_many_adapters_copies_one(bench: Bench) -> None:
    """It must not fill the disk; nor is a file of another size taken for the adapter."""
    more = [described(f"run/out/{i}/adapter_model.safetensors", Role.ADAPTER, WEIGHTS) for i in range(9)]
    twice = described("run/out/again.gguf", Role.GGUF, MODEL, quant="Q8_0")

    bench.hand_over(manifest_of(MODEL, "run/out/n-Q8_0.gguf", *more, twice))
    assert len(bench.parts()) == 2

    longer = manifest_of()
    longer.files[1] = dataclasses.replace(longer.files[1], size=8)
    (bench.incoming / "adapter/adapter_model.safetensors.part").unlink()
    assert bench.hand_over(longer) == 0
    assert list(bench.parts()) == ["n-Q8_0.gguf.part"]


async def test_a_machine_is_not_kept_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is the same everywhere is waited for while that can pay, and it is said when it was given up; a
    K-quant is not waited for."""
    monkeypatch.setattr(deliver, "patience_s", lambda size, line: 0.05 if size == len(MODEL) else 60.0)
    never = asyncio.create_task(asyncio.sleep(3600))
    bench.rebuilding._task = never
    k_quant = described("run/out/n-Q4_K_M.gguf", Role.GGUF, MODEL, quant="Q4_K_M")
    await bench.rebuilding._wait(manifest_of(MODEL, "run/out/n-Q8_0.gguf", k_quant))
    assert bench.failed() is None

    bench.rebuilding._made.clear()
    await bench.rebuilding._wait(manifest_of())
    assert bench.failed() == {"why": "it took longer than a download"}

    never.cancel()


def test_the_jobs_own_mirror_says_what_the_line_carries(bench: Bench) -> None:
    """Its host may be another than that of the last model."""
    with bench.database.write() as c:
        assert bench.rebuilding._measured(c) is None
        add_job(c, "other1")
        events.add(c, "line.measured", 1, job="other1", mbps=9.0)
        assert bench.rebuilding._measured(c) is None
        events.add(c, "line.measured", 1, job="job", mbps=33.5)
        assert bench.rebuilding._measured(c) == 33.5
