"""The rebuild beside a job: when it begins, what comes of it, and that the job's way home never depends on it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from desk import Desk
from shell_python import ShellPython
from store import MANIFEST, NOW, add_job, add_lease
from structlog.testing import capture_logs
from test_rebuilding import MODEL, WEIGHTS, described, manifest_of

from daemon import platform
from daemon.control import rebuilding
from daemon.control.driver import Driver
from daemon.control.homecoming import ADAPTER_WEIGHTS
from daemon.domain.spec import JobSpec
from daemon.errors import LinkLost, TransferFailed
from daemon.store import jobs, leases, stages
from daemon.store.downloads import DurableChunks
from remote_payload.contract import Done, Output, Prepared, Role, Stage, dump

COMMIT = "c0" * 20
PROMISED = described(f"run/dpo/adapter/{ADAPTER_WEIGHTS}", Role.ADAPTER, WEIGHTS)
DONE = Done(Stage.DPO, "two", 1, [Output(PROMISED.path, PROMISED.size, PROMISED.sha256)], 1.0)
Q8_AND_Q4 = {"gguf": ("Q8_0", "Q4_K_M")}
ALL = ["deliver.chosen", "rebuild.started", "rebuild.compared"]


class Machine:
    """The box, as far as it is asked for the adapter; each of `errors` is what one asking ends in."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = [*errors]

    async def fetch_folder(self, path: str, into: Path, **_: Any) -> list[Output]:
        await asyncio.sleep(0)  # as anything over a network: others go on meanwhile
        if self._errors:
            raise self._errors.pop(0)
        into.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a folder of this test
        (into / ADAPTER_WEIGHTS).write_bytes(WEIGHTS)
        return [Output(ADAPTER_WEIGHTS, PROMISED.size, PROMISED.sha256)]


class Beside:
    """A job that was trained on a machine and has its manifest; `python` is the interpreter that rebuilds."""

    def __init__(self, folder: Path, python: dict[str, str], **spec: Any) -> None:
        self.folder, self.desk = folder, Desk(folder)
        made = described("run/out/n-Q8_0.gguf", Role.GGUF, MODEL, quant="Q8_0")
        (folder / "made").write_bytes(MODEL)
        (folder / "told").write_text(dump(made) + "\n")
        (folder / "base/model.safetensors").write_bytes(bytes(2000))
        making = f'mkdir -p "$4/run/out"; cp {folder}/made "$4/{made.path}"; cat {folder}/told'
        self.python = ShellPython(folder / "python", **{"rebuild": making} | python)
        self.desk.world.settings = replace(self.desk.world.settings, box_python=self.python.path)
        given = {"version": 1, "name": "n", "model": "base", "sft": {"data": "-"}, "dpo": {"data": "-"}}
        self.spec = JobSpec.model_validate(given | {"deliver": "rebuild"} | spec)
        self.desk.write(self._store)
        self.driver = self.begun()

    def _store(self, c: Any) -> None:
        add_job(
            c, "job", spec_json=self.spec.canonical_json(), spec_dir=str(self.folder), model_revision=COMMIT,
            prepared_json=dump(Prepared(ok=True, line="", sft_rows=0, dpo_rows=0)), manifest_sha256=MANIFEST,
            manifest_json=dump(manifest_of()),
        )  # fmt: skip
        self.lease = leases.get(c, add_lease(c, "job"))
        stages.mark_done(c, stages.of_attempt(c, jobs.get(c, "job"))[1], dump(DONE), NOW)

    def begun(self) -> Driver:
        """As after each start of the daemon."""
        return Driver(self.desk.world, self.desk.job("job"), self.spec)

    def follow(self) -> asyncio.Task[None]:
        """The machine was looked at. What goes on beside the job since."""
        self.driver.acting.rebuilding.follow(self.driver._look(), self.lease)
        task = self.driver.acting.rebuilding._task
        assert task is not None
        return task

    async def adapter_comes_home(self) -> None:
        mirroring = self.driver.acting.mirroring
        await mirroring.bring(cast(Any, Machine()), self.driver._look().stages[1:2], None)

    async def place(self, *errors: Exception) -> int:
        """Before the download: the bytes that need not be fetched."""
        s, acting = self.driver._look(), self.driver.acting
        return await acting.rebuilding.place(s, self.lease, cast(Any, Machine(*errors)), acting.home(s))

    @property
    def nonce(self) -> str:
        """Of the stage whose files are made."""
        return self.driver._look().stages[-1].nonce

    @property
    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """The events of it."""
        with self.desk.database.read() as c:
            rows = c.exec_driver_sql("SELECT kind, body FROM events ORDER BY id").all()
        return [(kind, json.loads(body)) for kind, body in rows if kind.startswith(("rebuild.", "deliver."))]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]

    @property
    def failures(self) -> list[str]:
        return [body["why"] for kind, body in self.told if kind == "rebuild.failed"]

    @property
    def parts(self) -> dict[str, bytes]:
        incoming = self.folder / "models/.incoming-job"
        return {file.name: file.read_bytes() for file in incoming.rglob("*") if file.is_file()}

    @property
    def left(self) -> list[Path]:
        """What still takes room."""
        return [*(self.folder / "models/.rebuild/jobs").glob("*")]


Make = Callable[..., Beside]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Beside] = []
    monkeypatch.setattr(platform, "memory_available", lambda: 64 << 30)

    def build(python: dict[str, str] | None = None, **spec: Any) -> Beside:
        made.append(Beside(tmp_path, python or {}, **spec))
        return made[-1]

    yield build
    for each in made:
        each.desk.database.close()


async def test_what_was_made_here_need_not_be_fetched(make: Make) -> None:
    """File and adapter are the beginning of the download, and nothing of the rebuild takes room any longer."""
    job = make()

    assert await job.place() == len(MODEL) + len(WEIGHTS)

    assert job.parts == {"n-Q8_0.gguf.part": MODEL, "adapter_model.safetensors.part": WEIGHTS}
    assert job.kinds == ALL and job.left == []


async def test_it_begins_when_the_adapter_is_here(make: Make) -> None:
    """Until then not even the interpreter is asked, and each look at the machine begins no other."""
    job = make()
    task = job.follow()
    for _ in range(3):
        await asyncio.sleep(0)
        assert job.follow() is task and job.python.calls == [] and not task.done()

    await job.adapter_comes_home()
    job.follow()
    await task
    job.follow()

    assert job.kinds == ["deliver.chosen", "rebuild.started"]
    assert [call.split()[0] for call in job.python.calls].count("remote_payload.rebuild") == 2  # asked, and made


async def test_a_job_that_only_downloads(make: Make) -> None:
    """The word of the job file is enough: nothing is started, nothing noted."""
    job = make(deliver="download")

    assert await job.place(TransferFailed("asked for its adapter")) == 0
    await job.adapter_comes_home()
    job.driver.acting.rebuilding.follow(job.driver._look(), job.lease)
    await job.driver.acting.rebuilding.forget()

    assert job.driver.acting.rebuilding._task is None
    assert job.python.calls == [] and job.kinds == []


async def test_a_download_that_was_begun_goes_on(make: Make) -> None:
    """A restart in its middle begins no rebuild, for what it fetched is not thrown away."""
    job = make()
    DurableChunks(job.desk.database, "job", MANIFEST, job.desk.clock).load("run/out/n-Q8_0.gguf", "0" * 64, 10, 4)

    assert await job.place() == 0

    assert job.python.calls == [] and job.parts == {}


async def test_why_it_is_downloaded_is_told_once(make: Make) -> None:
    """Also when the daemon was started again, as long as the reason is the same."""
    job = make({"lacking": "echo torch"}, deliver="auto")
    for _ in range(2):
        job.driver = job.begun()
        assert await job.place() == 0

    [(kind, body)] = job.told
    assert kind == "deliver.chosen" and body["way"] == "download" and "lacks torch" in body["why"]


FAILURES = [
    ({"converter": "echo no index >&2; exit 69"}, "converter ended with code 69: no index"),
    ({"rebuild": "echo no room left >&2; exit 71"}, "rebuild ended with code 71: no room left"),
    ({"rebuild": "exit 3"}, "rebuild ended with code 3: nothing on standard error"),
    ({"rebuild": "echo a warning of some library"}, "ArtifactFile: not JSON"),
    ({"rebuild": "kill -9 $$"}, "rebuild ended with code -9"),
]


@pytest.mark.parametrize(("python", "why"), FAILURES, ids=[why for _, why in FAILURES])
async def test_a_rebuild_that_fails_is_a_download(make: Make, python: dict[str, str], why: str) -> None:
    """What ended it is told; the adapter is here all the same, and nothing of the try takes room."""
    job = make(python)

    assert await job.place() == len(WEIGHTS)

    assert len(job.failures) == 1 and job.failures[0].startswith(why)
    assert list(job.parts) == ["adapter_model.safetensors.part"] and job.left == []


async def test_a_file_that_is_not_where_it_was_told(make: Make) -> None:
    """Deleted by somebody meanwhile: the download fetches everything."""
    job = make({"rebuild": "cat ${0%/python/python}/told"})

    assert await job.place() == 0

    assert len(job.failures) == 1 and "No such file" in job.failures[0]
    assert job.parts == {} and job.left == []


async def test_a_fault_of_ours_is_a_download_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised beside the job, the job goes on, and the event names it."""

    async def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(rebuilding.delivery, "choose", fail)
    job = make()

    assert await job.place() == 0

    assert job.failures == ["ZeroDivisionError('by nothing')"]


async def test_a_line_that_breaks_before_the_download(make: Make) -> None:
    """Is reached again like any other: what was made meanwhile is taken then."""
    job = make()
    with pytest.raises(LinkLost):
        await job.place(LinkLost("reset"))

    assert await job.place() == len(MODEL) + len(WEIGHTS)

    assert job.kinds == ALL


async def test_a_machine_that_does_not_give_its_adapter(make: Make) -> None:
    """No reason to wait: the download asks for the same file, and has the last word."""
    job = make()

    assert await job.place(TransferFailed("not what was promised")) == 0

    assert job.failures == ["not what was promised"] and job.parts == {} and job.left == []


async def test_the_hub_is_asked_until_it_answers(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the person's token and endpoint; what it says is told when it changes, not each time."""
    monkeypatch.setattr(rebuilding, "RETRY_S", 0.0)
    monkeypatch.setenv("HF_TOKEN", "secret")
    says = 'f=${0%/python}/tries; echo "$HF_ENDPOINT $HF_TOKEN $6@$8" >> $f; [ $(wc -l < $f) -gt 3 ] && exit 0; '
    job = make({"fetch": says + "echo no answer >&2; exit 69"}, model="owner/name@main")

    assert await job.place() == len(MODEL) + len(WEIGHTS)

    asked = f"{job.desk.world.settings.hub} secret owner/name@{COMMIT}"
    assert (job.folder / "python/tries").read_text().splitlines() == [asked] * 4
    assert job.failures == ["fetch ended with code 69: no answer"]


async def test_no_secret_reaches_what_makes_the_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It opens what came from a rented machine. What is needed to find packages by is given, nothing else of ours."""
    monkeypatch.setenv("VAST_API_KEY", "a-canary")
    monkeypatch.setenv("HF_TOKEN", "a-canary")
    monkeypatch.setenv("PIP_INDEX_URL", "http://index")
    seen = "env >> ${0%/python}/environment"
    job = make({"lacking": seen, "converter": seen, "rebuild": seen})

    await job.place()

    environment = (job.folder / "python/environment").read_text()
    assert environment.count("PIP_INDEX_URL=http://index") == 3 and "HF_HUB_OFFLINE=1" in environment
    assert "a-canary" not in environment


async def test_what_cannot_be_deleted_stays(make: Make) -> None:
    """And is said; the download is not kept waiting for it."""
    job = make()
    in_the_way = job.folder / "models/.rebuild/jobs/job"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("a file where the folder should be")

    with capture_logs() as said:
        assert await job.place() == len(WEIGHTS)

    assert [line["job"] for line in said if line["event"] == "rebuild.kept"] == ["job"]
    assert job.left == [in_the_way]


async def written(path: Path) -> str:
    """What another process writes there, once it has."""
    async with asyncio.timeout(20):
        while not (path.exists() and (text := path.read_text()).endswith("\n")):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)
    return text


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_new_attempt_ends_the_rebuild_of_the_last(make: Make, tmp_path: Path) -> None:
    """Its files would be those of another adapter. No process of it is left."""
    job = make({"rebuild": f'echo $$ > {tmp_path}/$(basename "$4"); exec sleep 600'})
    await job.adapter_comes_home()
    old, nonce = job.follow(), job.nonce
    pid = int(await written(tmp_path / nonce))
    assert is_alive(pid)

    with job.desk.database.write() as c:
        kept = stages.of_attempt(c, jobs.get(c, "job"))[:2]
        stages.begin_attempt(c, "job", 2, "s", ["SFT", "DPO", "GGUF"], NOW, keep=kept, fresh=False)
        jobs.change(c, jobs.get(c, "job"), NOW, job.desk.database.epoch, attempt=2)
    new = job.follow()
    await asyncio.wait({old}, timeout=20)

    assert new is not old and not is_alive(pid)
    assert is_alive(int(await written(tmp_path / job.nonce)))
    await job.driver.acting.rebuilding.stop()


async def test_a_k_quant_is_not_waited_for(make: Make, tmp_path: Path) -> None:
    """It may differ anyway; nothing goes on making it."""
    making = f'mkdir -p "$4/run/out"; cp {tmp_path}/made "$4/run/out/n-Q8_0.gguf"; echo $$ > {tmp_path}/pid'
    job = make({"rebuild": f"{making}; cat {tmp_path}/told; exec sleep 600"}, export=Q8_AND_Q4)

    assert await job.place() == len(MODEL) + len(WEIGHTS)

    assert job.kinds == ALL and not is_alive(int(await written(tmp_path / "pid")))


async def test_a_command_does_not_undo_it(make: Make, tmp_path: Path) -> None:
    """Cut short while it waits for a file, the act is done again, and takes what was made meanwhile."""
    waiting = f"echo $$ > {tmp_path}/pid; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    making = f'mkdir -p "$4/run/out"; cp {tmp_path}/made "$4/run/out/n-Q8_0.gguf"; cat {tmp_path}/told'
    job = make({"rebuild": f"{waiting}; {making}"})
    placing = asyncio.create_task(job.place())
    await written(tmp_path / "pid")

    placing.cancel()
    await asyncio.gather(placing, return_exceptions=True)
    (tmp_path / "go").touch()

    assert await job.place() == len(MODEL) + len(WEIGHTS)
    assert job.kinds == ALL
