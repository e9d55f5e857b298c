"""Between VERIFIED and destroy the model on this disk must stay what the receipt says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeHome, MakeJob
from home import until


def delete(model: Path) -> None:
    model.unlink()


def touch(model: Path) -> None:
    model.chmod(0o644)
    model.touch()


def overwrite(model: Path) -> None:
    """A byte in place, and the time set back: only the bytes tell."""
    status = model.stat()
    model.chmod(0o644)
    with open(model, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("hurt", [delete, touch, overwrite])
def test_model_changed_after_it_was_verified(home: MakeHome, job_file: MakeJob, hurt: Callable[[Path], None]) -> None:
    """The receipt does not describe this disk any more: no destroy, HELD; fetched and verified again on resume."""
    one = home()
    one.start()
    job = one.submit(job_file(destroy="ask"))
    view = one.reach(job, "HELD")
    assert (view["state"], view["hold"]["reason"]) == ("VERIFIED", "ASK_DESTROY")
    hurt(Path(view["model_dir"]) / "quick-Q8_0.gguf")

    one.jobctl("accept", job)
    until(lambda: one.job(job)["state"] == "GGUF", "the loss is noticed")
    view = one.reach(job, "HELD")

    assert view["hold"]["reason"] == "ARTIFACT_LOST"
    assert not one.journal("DELETE", "/instances/")
    one.jobctl("resume", job)
    until(lambda: one.job(job)["state"] == "VERIFIED", "verified again")
    one.jobctl("accept", job)
    one.reach(job, "DESTROYED")
