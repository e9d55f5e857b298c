"""One job, really trained, whose daemon dies at every boundary and whose trainer is killed: the same model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import psutil
import pytest
from conftest import MakeHome, MakeJob
from home import Home, until
from test_crash import BOUNDARIES

LINE_S = 600.0
TRAINED = ("stage.done", 1)  # the boundary that ends SFT


def trained(view: dict[str, str]) -> dict[str, str]:
    """sha256 of what was trained and of what was made of it."""
    names = ("quick-Q8_0.gguf", "adapter/adapter_model.safetensors")
    return {name: hashlib.sha256(Path(view["model_dir"], name).read_bytes()).hexdigest() for name in names}


def kill_on_box(one: Home, *words: str) -> None:
    """SIGKILL the process of the box whose command line has these words, once it runs."""
    boxes = str(one.folder / "market" / "instances")

    def find() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if set(words) <= set(command) and any(word.startswith(boxes) for word in command):
                return process
        return None

    until(find, f"{words} runs on the box", LINE_S).kill()


def kill_the_training(one: Home) -> None:
    """First the trainer, which its chain starts again; then the chain, whose trainer is then an orphan."""
    events = one.box() / "events.jsonl"
    until(lambda: '"kind": "checkpoint"' in events.read_text(), "a checkpoint", LINE_S)
    kill_on_box(one, "remote_payload.sft")
    until(lambda: '"kind": "resume"' in events.read_text(), "the trainer resumes", LINE_S)
    kill_on_box(one, "remote_payload.run", "chain")


@pytest.mark.timeout(2 * LINE_S)
def test_killed_at_every_boundary_in_turn(home: MakeHome, job_file: MakeJob) -> None:
    """`kill -9` of the daemon at each boundary, of the trainer and of its chain: one machine, a quiet run's model."""
    quiet = home(real=True)
    quiet.start()
    expected = trained(quiet.reach(quiet.submit(job_file()), "DESTROYED", within_s=LINE_S))
    quiet.close()

    one, job = home(real=True), ""
    for event, nth in BOUNDARIES:
        one.start(event, "after")  # the next one of its kind: an operation that a crash cut short is written anew
        job = one.submit(job_file(), check=None) if event == "job.submitted" else job
        if (event, nth) == TRAINED:
            kill_the_training(one)
        assert one.crashed(LINE_S), event
    one.start()
    view = one.reach(job, "DESTROYED", within_s=LINE_S)

    assert trained(view) == expected
    (instance,) = one.ledger()
    assert instance["destroyed_at"] is not None
    assert len(one.journal("PUT", "/asks/")) == 1
    assert not one.events(job, "job.held")
