"""What the daemon makes of a machine's preflight, and of what it says it has read."""

from __future__ import annotations

import hashlib
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.box.box import BoxStatus
from daemon.control.adapters import Adapter
from daemon.control.jobfile import DataSet, integration
from daemon.control.provision import (
    AnotherAttempt,
    DataRefused,
    IntegrationRefused,
    _model_to_fetch,
    _objections,
    _refuse_another,
    _unchanged,
    check,
)
from daemon.domain.records import StageRun
from daemon.domain.spec import JobSpec
from remote_payload.contract import Exit, ModelSource, Needs, Phase, Prepared, Stage, Status

CARD = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 << 30}
SLOW = {"name": "matmul rate cuda:1", "ok": False, "detail": "210 TFLOP/s, a NVIDIA H100 usually reaches 780"}


@pytest.mark.parametrize(
    ("facts", "gpus", "told"),
    [
        ({"ok": True, "checks": [], "gpus": [CARD, CARD]}, 2, ""),
        ({"ok": True, "checks": [], "gpus": [CARD]}, 2, "gpus: 2 are rented, 1 can be used"),
        ({"ok": False, "checks": [SLOW], "gpus": [CARD, CARD]}, 2, f"matmul rate cuda:1: {SLOW['detail']}"),
        ({"ok": False, "checks": []}, 1, "gpus: 1 are rented, 0 can be used"),
        ({"ok": False, "checks": 7, "gpus": None}, 0, "failed without a reason"),
    ],
)
def test_a_machine_without_what_was_rented_is_unfit(facts: dict, gpus: int, told: str):
    """A failed check, or a GPU that is hidden, is told in words; a machine as it was rented has none."""
    assert _objections(facts, gpus) == told


SPEC = JobSpec.model_validate(
    {"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}, "integration": {"tag": "T", "sft_rows": 40}}
)
DATA = {"sft": DataSet("a" * 64, 40, "b" * 64)}
LINE = integration(SPEC, DATA).line(40, 0)
READ = Prepared(ok=True, line=LINE, sft_rows=40, dpo_rows=0)


@pytest.mark.parametrize(
    ("said", "error", "why"),
    [
        (READ, None, ""),
        (replace(READ, sft_rows=39), IntegrationRefused, "from 39 SFT and 0 DPO rows"),
        (replace(READ, line="another"), IntegrationRefused, "the box read 'another'"),
        (replace(READ, line=""), IntegrationRefused, "the box printed none"),
        (replace(READ, ok=False, exit_code=Exit.INTEGRATION, problems=["no"]), IntegrationRefused, "; no"),
        (replace(READ, ok=False, exit_code=Exit.BAD_DATA, problems=["row 7", "row 8"]), DataRefused, "row 7; row 8"),
        (replace(READ, ok=False, exit_code=9), DataRefused, "prepare ended with 9"),
    ],
)
def test_its_word_alone_is_not_enough(said: Prepared, error: type[Exception] | None, why: str) -> None:
    """Counts and line have to be those that were counted here."""
    if error is None:
        check(said, SPEC, DATA)
        return
    with pytest.raises(error, match=re.escape(why)):
        check(said, SPEC, DATA)


@pytest.mark.parametrize(
    ("alive", "nonce", "refused"), [(True, "other", True), (True, "n1", False), (False, "other", False)]
)
def test_a_machine_that_works_on_what_a_backup_forgot(alive: bool, nonce: str, refused: bool) -> None:
    """Another job.json under its running stages would spoil them; what has ended may be replaced."""
    status = Status("abc123", 2, Phase.RUNNING, Stage.SFT, nonce, 1.0, "boot", 7)
    stages = (StageRun("abc123", 1, "SFT", "n1", 1, None, None, None),)
    with pytest.raises(AnotherAttempt) if refused else nullcontext():
        _refuse_another(BoxStatus(alive, status, "boot", 0, 0), stages, 77)


def test_which_model_the_machine_fetches() -> None:
    """One of the hub, at its revision where it is known; a folder of ours travels from here."""
    needs = Needs(disk=1, memory=1, model=None)

    assert _model_to_fetch(needs) == _model_to_fetch(replace(needs, model=ModelSource("here"))) == {}
    hub = replace(needs, model=ModelSource("any/m", "any/m", None))
    assert _model_to_fetch(hub) == {"HOMEPORT_MODEL": "any/m"}
    pinned = replace(needs, model=ModelSource("any/m", "any/m", "c0ffee"))
    assert _model_to_fetch(pinned) == {"HOMEPORT_MODEL": "any/m", "HOMEPORT_REVISION": "c0ffee"}


def test_an_adapter_that_is_not_what_it_was_at_submit(tmp_path: Path) -> None:
    """The job would go on from something else: changed or gone, it holds the job instead."""
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"as it was")
    adapter = Adapter("mine", str(tmp_path), {weights.name: hashlib.sha256(b"as it was").hexdigest()})

    assert [upload.local for upload in _unchanged(adapter)] == [weights]
    weights.write_bytes(b"otherwise")
    with pytest.raises(DataRefused, match="is not the file that it was at submit"):
        list(_unchanged(adapter))
    weights.unlink()
    with pytest.raises(DataRefused, match="the adapter mine cannot be read any more"):
        list(_unchanged(adapter))
