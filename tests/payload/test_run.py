"""The runner: idempotent, detached, and back on its feet after any kill."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from payload_box import Box, launcher, ready, wait_for, warm

from remote_payload import chain, contract, reporting, run, script
from remote_payload.chain import Chain, advance, claim
from remote_payload.contract import Exit, Integration, JobFile, Lora, ModelSource, Phase, Stage, StagePlan, Status
from remote_payload.layout import Layout
from remote_payload.processes import Identity, boot_id, start_ticks
from remote_payload.progress import Events, read_from

MakeBox = Callable[..., Box]
SFT_ONLY = [StagePlan(Stage.SFT, "nonce-sft")]

# Stands for a stage that takes for ever, in tests of who may live beside whom.
ENDLESS = '#!/bin/sh\ncase "$*" in *remote_payload.sft*) echo endless; exec sleep 600;; *) exec {python} "$@";; esac\n'

# SFT that waits in its second save until it is asked to stop: it cannot end before a test has done its deed.
WAITS_IN_A_SAVE = """
import runpy, sys, time
from pathlib import Path
from remote_payload import checkpoints
seal = checkpoints.seal
def wait(folder, *rest):
    while folder.name == "checkpoint-6" and not Path("run/stop").exists():
        time.sleep(0.05)
    return seal(folder, *rest)
checkpoints.seal = wait
sys.argv = ["sft"]
runpy.run_module("remote_payload.sft", run_name="__main__")
"""


def waiting(box: Box) -> str:
    """A launcher whose SFT is WAITS_IN_A_SAVE."""
    (box.layout.root / "waits.py").write_text(WAITS_IN_A_SAVE)
    return launcher(box, ENDLESS.replace("echo endless; exec sleep 600", "exec {python} waits.py"))


def stage_pid(box: Box) -> int:
    """The process of the running SFT stage."""
    started = box.layout.markers("nonce-sft") / contract.STARTED_FILE
    wait_for(started.exists, "SFT started")
    return int(json.loads(started.read_text())["pid"])


def test_a_whole_run(trained: Box) -> None:
    """Two stages end in two done.json that hash every output, and a status that says so."""
    status = trained.status()

    assert status["alive"] is False
    assert status["status"]["phase"] == Phase.DONE
    assert status["status"]["step"] == status["status"]["total_steps"] == 8
    assert status["status"]["checkpoint"] == "run/dpo/checkpoint-8"
    assert status["log_size"] == trained.layout.log.stat().st_size
    for plan in trained.job.stages:
        done = trained.done(plan.nonce)
        assert (done.stage, done.nonce, done.attempt) == (plan.stage, plan.nonce, 1)
        hashed = {output.path: output.sha256 for output in done.outputs}
        assert hashed[f"run/{plan.stage.lower()}/adapter/adapter_model.safetensors"] == trained.adapter_hash(plan.stage)


def test_start_again_changes_nothing(trained: Box) -> None:
    """Every nonce of a finished job may be started again: the status comes back and nothing runs."""
    before = trained.layout.events.stat().st_size

    for plan in trained.job.stages:
        assert trained.start(plan.nonce)["phase"] == Phase.DONE

    assert trained.status()["alive"] is False
    assert trained.layout.events.stat().st_size == before


def test_foreign_nonce_is_refused(make_box: MakeBox) -> None:
    """A nonce that job.json does not list starts nothing."""
    box = make_box()

    refused = box.run("start", "--nonce", "nonce-of-another")

    assert refused.returncode == Exit.BAD_CONFIG
    assert not box.layout.chain.exists()


def test_one_chain_at_a_time(make_box: MakeBox, trained: Box) -> None:
    """While a chain lives its own nonces are a no-op and a new attempt's are refused."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    python = launcher(box, ENDLESS)
    first = box.start("nonce-sft", HOMEPORT_PYTHON=python)
    again = box.start("nonce-sft", HOMEPORT_PYTHON=python)
    box.set(attempt=2, stages=[StagePlan(Stage.SFT, "nonce-2")])

    refused = box.run("start", "--nonce", "nonce-2")

    assert again["pid"] == first["pid"]
    assert refused.returncode == Exit.BAD_CONFIG
    assert "another job or attempt is alive" in refused.stderr


def test_a_start_repeated_before_the_first_word(make_box: MakeBox, capsys: pytest.CaptureFixture[str]) -> None:
    """The chain lives and has told nothing yet, as while nvidia-smi is asked: its word is waited for."""
    box = make_box(stages=SFT_ONLY)
    contract.write_whole(box.layout.chain, Identity.own(["nonce-sft"]).dump())
    said = Status(box.job.job, 1, Phase.STARTING, None, None, 0.0, boot_id(), os.getpid())
    word = threading.Timer(0.5, lambda: contract.write_whole(box.layout.status, contract.dump(said)))
    word.start()

    try:
        assert run.start(box.layout, "nonce-sft") == Exit.OK
    finally:
        word.join()
        box.layout.chain.unlink()  # it names this process, and the box ends what its chain started

    assert json.loads(capsys.readouterr().out)["phase"] == Phase.STARTING


def test_two_starts_at_once(make_box: MakeBox, trained: Box) -> None:
    """Starts that race leave one chain."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    python = launcher(box, ENDLESS)
    starters = [
        subprocess.Popen(
            [box.python, "-m", "remote_payload.run", "start", "--nonce", "nonce-sft"],
            cwd=box.layout.root,
            env=box.environment(HOMEPORT_PYTHON=python),
            stdout=subprocess.DEVNULL,
        )
        for _ in range(4)
    ]

    assert [starter.wait(300) for starter in starters] == [0, 0, 0, 0]
    stage_pid(box)
    assert len(box.events("stage_start")) == 1
    assert box.status()["alive"] is True


def test_killed_chain_resumes(make_box: MakeBox, trained: Box) -> None:
    """kill -9 of the chain alone: the same start ends the orphaned stage, resumes it, and the result is the same."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    chain = box.start("nonce-sft", HOMEPORT_PYTHON=waiting(box))["pid"]
    wait_for(lambda: box.events("checkpoint"), "a checkpoint")
    orphan = stage_pid(box)
    os.kill(chain, signal.SIGKILL)
    wait_for(lambda: start_ticks(chain) is None, "the chain's death")
    assert box.status()["alive"] is False

    box.start("nonce-sft")

    assert box.ended() == Phase.DONE
    assert start_ticks(orphan) is None
    assert box.events("resume")
    assert box.adapter_hash(Stage.SFT) == trained.adapter_hash(Stage.SFT)


def test_orphaned_stage_is_ended_first(make_box: MakeBox, trained: Box) -> None:
    """Two trainers never write one folder: what a killed chain left running is dead before the new one begins."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    python = launcher(box, ENDLESS)
    chain = box.start("nonce-sft", HOMEPORT_PYTHON=python)["pid"]
    orphan = stage_pid(box)
    os.kill(chain, signal.SIGKILL)
    wait_for(lambda: start_ticks(chain) is None, "the chain's death")
    assert start_ticks(orphan) is not None

    again = box.start("nonce-sft", HOMEPORT_PYTHON=python)

    assert start_ticks(orphan) is None
    assert again["pid"] != chain


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        ("kill -9 $$", 128 + signal.SIGKILL, "killed by signal 9"),
        (f"exit {Exit.RANK_LOST}", Exit.RANK_LOST, "exit 72 (rank lost)"),
    ],
)
def test_killed_stage_is_resumed_once(make_box: MakeBox, trained: Box, end: str, code: int, reason: str) -> None:
    """A stage that a signal or a hung rank ends is started once more by itself; the second time it is a failure with
    its reason."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    python = launcher(box, ENDLESS.replace("exec sleep 600", end))

    box.start("nonce-sft", HOMEPORT_PYTHON=python)

    failed_file = box.layout.markers("nonce-sft") / contract.FAILED_FILE
    wait_for(failed_file.exists, "failed.json")
    failed = box.failed("nonce-sft")
    assert (failed.exit_code, failed.reason) == (code, reason)
    assert failed.detail.splitlines() == ["endless", "endless"]
    assert box.ended() == Phase.FAILED
    assert box.start("nonce-sft")["phase"] == Phase.FAILED


def test_short_memory_is_tried_with_less(make_box: MakeBox, trained: Box) -> None:
    """A stage out of card memory is started again four times, each with half the rows a forward, and then fails."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    python = launcher(box, ENDLESS.replace("exec sleep 600", "exit 70"))

    box.start("nonce-sft", HOMEPORT_PYTHON=python)

    wait_for((box.layout.markers("nonce-sft") / contract.FAILED_FILE).exists, "failed.json")
    assert box.failed("nonce-sft").exit_code == Exit.OUT_OF_MEMORY
    assert len(box.events("warn")) == 4


def test_failure_tells_the_reason(make_box: MakeBox) -> None:
    """A stage that refuses leaves its own words and the end of its log in failed.json; later stages do not start."""
    box = make_box()  # prepare has not run

    box.start("nonce-sft", HOMEPORT_PYTHON=warm(box))

    wait_for(lambda: (box.layout.markers("nonce-sft") / contract.FAILED_FILE).exists(), "failed.json")
    failed = box.failed("nonce-sft")
    assert failed.exit_code == Exit.INTERNAL
    assert "prepared.json" in failed.reason
    assert "Traceback" in failed.detail
    assert not box.layout.markers("nonce-dpo").exists()


def test_stop_and_go_on(make_box: MakeBox, trained: Box) -> None:
    """`stop` ends the chain with a whole checkpoint and no failure; `start` goes on to the same result."""
    box = ready(make_box, trained, Stage.SFT, stages=SFT_ONLY)
    box.start("nonce-sft", HOMEPORT_PYTHON=waiting(box))
    wait_for(lambda: box.events("step"), "a step")
    box.run("stop")
    box.ended()
    stopped = box.status()["status"]

    box.start("nonce-sft", HOMEPORT_PYTHON=warm(box))

    assert box.ended() == Phase.DONE
    assert stopped["phase"] == Phase.STOPPED
    assert stopped["checkpoint"] is not None
    assert box.adapter_hash(Stage.SFT) == trained.adapter_hash(Stage.SFT)


def test_fresh_stage_sets_the_old_one_aside(make_box: MakeBox, trained: Box) -> None:
    """A fresh plan starts at step one and keeps what an earlier nonce left beside it."""
    box = ready(make_box, trained, Stage.SFT, stages=[StagePlan(Stage.SFT, "nonce-2", fresh=True)])
    shutil.copytree(trained.layout.stage(Stage.SFT), box.layout.stage(Stage.SFT))

    box.start("nonce-2", HOMEPORT_PYTHON=warm(box))

    assert box.ended() == Phase.DONE
    assert [line["step"] for line in box.events("step")] == list(range(1, 13))
    assert (box.layout.run / "sft.before-nonce-2/checkpoint-12").is_dir()


@pytest.fixture
def market() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a server that answers 503 once and 200 afterwards, and the requests it got."""
    requests: list[dict[str, Any]] = []

    class Market(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            key = self.headers.get("Authorization")
            requests.append({"method": self.command, "path": self.path, "body": body, "key": key})
            puts = sum(request["method"] == "PUT" for request in requests)
            self.send_response(503 if self.command == "PUT" and puts == 1 else 200)
            self.end_headers()
            self.wfile.write(b'{"success": true}')

        do_POST = do_PUT

        def log_message(self, *_: Any) -> None:
            """Tests print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Market) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


def test_alone_for_too_long(make_box: MakeBox, market: tuple[str, list[dict[str, Any]]]) -> None:
    """A runner on a box without a watch becomes it: tells the owner, and stops its own instance, trying until heard."""
    url, requests = market
    box = make_box(stages=SFT_ONLY, away_limit_s=0.5, notify_url=f"{url}/topic")
    own = {"VAST_URL": url, "CONTAINER_ID": "4242", "CONTAINER_API_KEY": "key-of-this-box"}

    runner = box.start("nonce-sft", **own, HOMEPORT_PYTHON=warm(box))["pid"]

    try:
        puts = wait_for(lambda: [r for r in requests if r["method"] == "PUT"][1:], "a second try to stop")
    finally:
        os.kill(runner, signal.SIGKILL)  # this market only says that it stops the machine
    assert puts[0]["path"] == "/api/v0/instances/4242/"
    assert json.loads(puts[0]["body"]) == {"state": "stopped"}
    assert puts[0]["key"] == "Bearer key-of-this-box"
    assert requests[0]["path"] == "/topic"
    assert requests[0]["body"].startswith("homeport tiny (j00001): failed - SFT: ")
    written = box.layout.log.read_text() + box.layout.events.read_text()
    assert "key-of-this-box" not in written


STATUS = Status("j00001", 1, Phase.RUNNING, Stage.SFT, "mine", 0.0, "boot", 1)
JOB = JobFile("j00001", 1, "tiny", ModelSource("tiny"), [], Integration("T", 1, 0), Lora(), ["Q8_0"])
STEP = {"kind": "step", "nonce": "mine", "step": 4, "total": 9, "loss": 1.5, "lr": 1e-4, "tokens": 99, "tok_s": 8.0}


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        (STEP, {"step": 4, "total_steps": 9, "loss": 1.5, "lr": 1e-4, "tokens": 99, "tok_s": 8.0}),
        (STEP | {"loss": "nan"}, {"step": 4, "total_steps": 9, "loss": None, "lr": 1e-4, "tokens": 99, "tok_s": 8.0}),
        (STEP | {"nonce": "another"}, {}),
        (
            {"kind": "checkpoint", "nonce": "mine", "step": 3, "path": "run/sft/checkpoint-3"},
            {"checkpoint": "run/sft/checkpoint-3", "checkpoint_step": 3},
        ),
        (
            {"kind": "resume", "nonce": "mine", "step": 3, "path": "run/sft/checkpoint-3"},
            {"step": 3, "checkpoint": "run/sft/checkpoint-3", "checkpoint_step": 3},
        ),
        ({"kind": "warn", "nonce": "mine", "msg": "x"}, {}),
    ],
)
def test_status_follows_the_events(line: dict[str, Any], changed: dict[str, Any]) -> None:
    """status.json is a fold over the events of its own nonce."""
    assert advance(STATUS, line) == dataclasses.replace(STATUS, **changed)


def test_the_heartbeat_says_how_busy_the_cards_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Utilisation of the busiest card and memory of the fullest, each under its own name, with every beat's time."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '3, 4096, 81559\\n97, 61170, 81559\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    layout = Layout(tmp_path)
    layout.run.mkdir()

    Chain(layout, JOB, -1, STATUS).beat(Phase.RUNNING, "sft")

    told = contract.load(Status, layout.status.read_bytes())
    assert (told.phase, told.gpu_util, told.gpu_memory) == (Phase.RUNNING, 97.0, 75.0)
    assert told.updated_at > STATUS.updated_at


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> OSError:
    """Nothing can be written but what lies in the interpreter's own buffers."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def refuse(*_: Any, **__: Any) -> None:
        raise full

    monkeypatch.setattr(contract, "write_whole", refuse)
    monkeypatch.setattr(Events, "emit", refuse)
    return full


def test_a_beat_that_finds_no_room_is_left_out(tmp_path: Path, full_disk: OSError) -> None:
    """A save may fill the disk: the chain has to see what becomes of its stage, or nobody writes down how it ended."""
    layout = Layout(tmp_path)
    layout.run.mkdir()

    Chain(layout, JOB, -1, STATUS).beat(Phase.RUNNING, "sft")

    assert not layout.status.exists()


@pytest.mark.parametrize("words", [None, "Error while serializing: I/O error: No space left on device (os error 28)"])
def test_a_full_disk_is_said_also_where_its_event_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_disk: OSError, words: str | None
) -> None:
    """By the exit code, which needs none; whether Python says it or a library in words of its own."""
    layout = Layout(tmp_path)
    layout.run.mkdir()
    (layout.run / contract.JOB_FILE).write_text(contract.dump(JOB))
    monkeypatch.setattr(sys, "argv", ["script", "--root", str(tmp_path)])

    def body(*_: Any) -> Exit:
        raise RuntimeError(words) if words else full_disk

    assert script.run(None, body) is Exit.OUT_OF_DISK


@pytest.mark.parametrize(
    ("stage", "word", "patience"),
    [(Stage.SFT, "", "FIRST_WORD_S"), (Stage.SFT, "hello", "SILENCE_S"), (Stage.GGUF, "gguf", "FIRST_WORD_S")],
)
def test_a_step_that_tells_nothing_more_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage, word: str, patience: str
) -> None:
    """It hangs, and would bill as long as anybody lets it: once it may resume, then the stage has failed, with the
    reason. Before its first word it may take longer, for it reads all of its data."""
    layout, plan = Layout(tmp_path), StagePlan(stage, "mine")
    layout.run.mkdir()
    layout.log.touch()
    line = json.dumps({"t": 0.0, "kind": word, "stage": stage, "nonce": "mine"})
    endless = tmp_path / "python"
    says = f"echo '{line}' >> '{layout.events}'" if word else ""
    endless.write_text(f"#!/bin/sh\n{says}\nexec sleep 600\n")
    endless.chmod(0o755)
    monkeypatch.setenv("HOMEPORT_PYTHON", str(endless))
    monkeypatch.setattr(chain, patience, 0.5)
    monkeypatch.setattr(chain, "BEAT_S", 0.1)
    with open(layout.chain_lock, "w") as lock:
        phase = Chain(layout, dataclasses.replace(JOB, stages=[plan]), lock.fileno(), STATUS).run()

    failed = contract.load(contract.Failed, (layout.markers("mine") / contract.FAILED_FILE).read_bytes())
    assert phase is Phase.FAILED
    assert failed.exit_code == Exit.RANK_LOST
    assert f"{stage.lower()} told nothing for" in failed.reason
    told = [line["kind"] for line in read_from(layout.events, 0)[0] if line["kind"] != word]
    assert told == ["stage_start", "error", "warn", "error"]


def test_what_builds_on_a_fresh_stage_is_set_aside_with_it(tmp_path: Path) -> None:
    """SFT afresh, then a failure and a plain retry: DPO's plan says nothing of fresh any more, and its old checkpoints
    are of another adapter, which only a person's word would have got past."""
    layout = Layout(tmp_path)
    for stage in (Stage.SFT, Stage.DPO):
        (layout.stage(stage) / "checkpoint-9").mkdir(parents=True)

    claim(layout, StagePlan(Stage.SFT, "second", fresh=True), layout.markers("second"))
    (layout.stage(Stage.SFT) / "checkpoint-3").mkdir()
    for plan in (StagePlan(Stage.SFT, "third"), StagePlan(Stage.DPO, "third-dpo")):
        claim(layout, plan, layout.markers(plan.nonce))

    assert [path.name for path in layout.stage(Stage.SFT).iterdir()] == ["checkpoint-3"]
    assert list(layout.stage(Stage.DPO).iterdir()) == []
    assert (layout.run / "dpo.before-second/checkpoint-9").is_dir()


def test_a_failure_tells_the_end_of_a_log_however_long(tmp_path: Path) -> None:
    """All of it would not fit into the memory, and a marker that is too long for home is no marker there."""
    layout = Layout(tmp_path)
    layout.run.mkdir()
    layout.log.write_bytes(b"x" * (1 << 20) + b"\nthe last words\n")

    failed = Chain(layout, JOB, -1, STATUS).failure(StagePlan(Stage.SFT, "mine"), Exit.INTERNAL, 7)

    assert failed.detail.endswith("the last words")
    assert len(failed.detail) < 1 << 17


def test_what_a_done_stage_names_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after done.json must not take the adapter: the stage would never run again, and the next would train
    on what was left of it."""
    layout = Layout(tmp_path)
    adapter = layout.adapter(Stage.SFT) / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"weights")
    layout.result(Stage.SFT).write_text(json.dumps({"outputs": ["run/sft/adapter/adapter_model.safetensors"]}))
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))

    done = Chain(layout, JOB, -1, STATUS).success(StagePlan(Stage.SFT, "mine"), 1.0)

    assert [output.size for output in done.outputs] == [7]
    assert {path.stat().st_ino for path in (adapter, adapter.parent, layout.stage(Stage.SFT))} <= synced


@pytest.mark.parametrize(("key", "mode"), [({"WANDB_API_KEY": "secret"}, "online"), ({}, "offline")])
def test_a_board_is_told_where_and_as_what(key: dict[str, str], mode: str) -> None:
    """W&B is online only with the key of this start, which is not repeated; TensorBoard's files are the stage's own."""
    told = reporting.environment(Layout(Path("/box")), dataclasses.replace(JOB, report_to="wandb"), Stage.SFT, key)

    assert told["WANDB_MODE"] == mode
    assert told["WANDB_NAME"] == "tiny j00001 SFT"
    assert told["TENSORBOARD_LOGGING_DIR"] == "/box/run/sft/tensorboard"
    assert "secret" not in told.values()
    assert reporting.environment(Layout(Path("/box")), JOB, Stage.SFT, key) == {}


def test_a_board_that_is_not_installed_is_a_problem() -> None:
    """It is said before anything is trained."""
    assert reporting.problems(JOB) == []
    assert reporting.problems(dataclasses.replace(JOB, report_to="no_such_board")) == [
        "report_to: no_such_board is not installed on this machine"
    ]


def test_a_pid_alone_proves_nothing() -> None:
    """The same PID with another start time or boot is another process."""
    own = Identity.own(["n"])

    assert own.is_alive()
    assert not dataclasses.replace(own, pid_start=own.pid_start - 1).is_alive()
    assert not dataclasses.replace(own, boot_id="another").is_alive()
    assert own.boot_id == boot_id()


def test_a_zombie_is_dead() -> None:
    """A process that has ended but was not reaped yet does not count as alive."""
    child = subprocess.Popen(["true"])
    wait_for(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "Z", "the child's end")

    assert start_ticks(child.pid) is None
    with contextlib.suppress(ChildProcessError):
        child.wait()
