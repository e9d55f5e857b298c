"""`jobctl demo --quick` as a person types it, from an installed wheel, far from any source tree."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from home import WITHIN_S, until
from installed import ROOT

DEMO_S = 600.0  # on a busy machine; docs/performance.md has the figures of an idle one
pytestmark = pytest.mark.timeout(DEMO_S + 120)
BOX_IMAGE = ROOT / ".venv-box"


class Demo:
    """One run of the demo in a home of its own; its transcript grows in a file."""

    def __init__(self, installed: Path, folder: Path, *options: str) -> None:
        self.folder, self.transcript = folder, folder / "transcript"
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}
        self.env = kept | {"HOMEPORT_HOME": str(folder / "home"), "OMP_NUM_THREADS": "2"}
        self.command = [installed / "jobctl", "demo", "--quick", *options, "--image", BOX_IMAGE]
        with open(self.transcript, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen(
                self.command, stdout=out, stderr=out, env=self.env, cwd=folder, start_new_session=True
            )

    def says(self, text: str) -> None:
        until(lambda: text in self.transcript.read_text() or self.process.poll() is not None, text, DEMO_S)
        assert text in self.transcript.read_text()

    def left_running(self) -> list[str]:
        """Processes that carry this home in their environment: market, daemon, box and all that runs in it."""
        found = []
        for process in psutil.process_iter():
            try:
                if any(str(self.folder / "home") in value for value in process.environ().values()):
                    found.append(" ".join(process.cmdline()))
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # ended meanwhile, or another user's
        return found


@pytest.fixture
def demo(installed: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Demo]:
    one = Demo(installed, tmp_path, *getattr(request, "param", ()))
    yield one
    if one.process.poll() is None:
        os.killpg(one.process.pid, signal.SIGINT)
        one.process.wait(WITHIN_S)


def test_quick_demo(demo: Demo) -> None:
    """The whole line, ending with the receipt, the model's place, an answer of it, and what it cost."""
    assert demo.process.wait(DEMO_S) == 0, demo.transcript.read_text()

    told = demo.transcript.read_text()
    receipt = told.partition("\nreceipt\n")[2]
    assert [f"L{n}" for n in range(6)] == re.findall(r"^  (L\d) .* passed$", receipt, re.MULTILINE)
    model = re.search(r"^model    (.+)$", receipt, re.MULTILINE)
    assert model is not None and (Path(model[1]) / "quick-Q8_0.gguf").is_file()
    assert re.search(r"^answer   \S", receipt, re.MULTILINE)
    assert told.splitlines()[-1].partition("spent $0.00 in ")[1]
    assert demo.left_running() == []


@pytest.mark.full
@pytest.mark.parametrize("demo", [["--chaos"]], indirect=True)
def test_chaos_demo(demo: Demo) -> None:
    """Four faults strike, each is survived after it struck, and the ledger knows one machine, which is destroyed."""
    assert demo.process.wait(DEMO_S) == 0, demo.transcript.read_text()

    told = demo.transcript.read_text()
    trials = re.findall(r" s  (FAULT|SURVIVED) ", told)
    assert len(trials) == 8
    assert all(trials[:n].count("FAULT") >= trials[:n].count("SURVIVED") for n in range(8))
    assert [f"L{n}" for n in range(6)] == re.findall(r"^  (L\d) .* passed$", told, re.MULTILINE)
    assert "4 faults ordered, 4 survived; the market's ledger: 1 machine, destroyed" in told
    assert demo.left_running() == []


def test_interrupted_demo(demo: Demo) -> None:
    """A second demo in the same home is refused and hurts nothing; Ctrl-C ends the first with all it started."""
    demo.says("PROVISIONED > SFT")

    second = subprocess.run(
        demo.command, capture_output=True, text=True, env=demo.env, cwd=demo.folder, timeout=WITHIN_S
    )
    assert second.returncode == 1 and "another demo is running" in second.stderr
    assert len(demo.left_running()) >= 4  # demo, market, daemon, box
    os.killpg(demo.process.pid, signal.SIGINT)

    assert demo.process.wait(WITHIN_S) == 130
    assert demo.left_running() == []
