"""The whole line on a language model of 135M weights and the ECB's rates: the job that `make demo` shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import BOX_PYTHON, MakeHome
from home import until

from daemon.box.lanes import BLOCK_BYTES, MAX_LANES, READS
from daemon.cli.demo import forex_job
from daemon.sandbox import models

LINE_S = 1500.0  # on a busy machine; docs/performance.md has the figures of an idle one
CUT_AT = 60_000_000  # bytes into a download of 150 MB


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    models.build_smollm2(folder, BOX_PYTHON)
    return folder


def in_small(spec: Path) -> Path:
    """The demo's job with a third of its steps and of its held-out rows."""
    spec.write_text(spec.read_text().replace("max_steps: 12", "max_steps: 4").replace("max_steps: 3", "max_steps: 2"))
    held_out = spec.parent / "eval.jsonl"
    held_out.write_text("".join(held_out.read_text().splitlines(keepends=True)[::3]))
    return spec


@pytest.mark.timeout(LINE_S)
def test_smollm2_on_the_ecb_rates(home: MakeHome, smollm2: Path, tmp_path: Path) -> None:
    """Trained, fetched over a link that is cut once, proven not to be the base model, and only then let go."""
    one = home(real=True)
    one.start()
    job = one.submit(in_small(forex_job(tmp_path, smollm2, "full")))
    until(lambda: len(one.events(job, "stage.done")) == 2, "trained", LINE_S)
    before = one.ledger()[0]["bytes_out"]
    one.fault("ssh_cut", after_bytes=CUT_AT)

    view = one.reach(job, "DESTROYED", within_s=LINE_S)

    (instance,) = one.ledger()
    stored = one.events(job, "receipt.stored")[0]["at"]
    assert all(request["t"] * 1000 >= stored for request in one.journal("DELETE", "/instances/"))
    receipt = json.loads((Path(view["model_dir"]) / "receipt.json").read_text())
    assert [level["passed"] for level in receipt["levels"]] == [True] * 6
    behaviour = receipt["levels"][-1]["numbers"]["Q8_0"]
    assert behaviour["base_kl_mean"] > 3 * behaviour["kl_mean"] and not receipt["levels"][-1]["warnings"]
    assert one.events(job, "verify.report")[-1]["sample"]
    size = sum(file["size"] for file in receipt["files"])
    again = instance["bytes_out"] - before - size
    assert 0 < again < MAX_LANES * READS * BLOCK_BYTES < CUT_AT
