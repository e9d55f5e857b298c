"""The soak: what its line of the ledger says, and where it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simulation import soak
from tests.simulation.portion import Portion, portions


def pretended(seeds: range) -> Portion:
    """Every seed that ends in 7 is bad."""
    bad = [(seed, f"I3: two of {seed}") for seed in seeds if seed % 10 == 7]
    return Portion(len(seeds), {seeds.start}, bad)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(soak, "LEDGER", tmp_path / "ledger.jsonl")
    monkeypatch.setitem(soak.TIERS, "decision", soak.Tier(pretended, 5, lambda: [0, 1]))
    return tmp_path / "ledger.jsonl"


def test_a_line_says_what_was_run(ledger: Path) -> None:
    """Commit, tier, seeds and the bad ones, with the invariant that each violated first; exit code 1."""
    code = soak.main(["--tier", "decision", "--seeds", "0:20", "--jobs", "2", "--commit", "abc", "--record"])

    line = json.loads(ledger.read_text())
    assert code == 1
    assert (line["commit"], line["tier"], line["seeds"], line["cells"]) == ("abc", "decision", "0:20", "1/2")
    assert line["violated"] == {"7": "I3", "17": "I3"}


def test_nothing_is_recorded_unasked(ledger: Path) -> None:
    """Without --record the ledger stays as it is."""
    assert soak.main(["--tier", "decision", "--seeds", "0:5", "--jobs", "1", "--commit", "abc"]) == 0
    assert not ledger.exists()


def test_it_goes_on_where_its_tier_ended(ledger: Path) -> None:
    """The next seed is the first that no line of the same tier covers."""
    lines = [{"tier": "decision", "seeds": "0:50"}, {"tier": "full", "seeds": "0:900"}]
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert soak.next_seed("decision", ledger) == 50


def test_what_time_cuts_off_is_not_counted() -> None:
    """The portions that come are the first ones, whole and in order."""
    found = list(portions(pretended, range(100), 10, 1, until=0.0))

    assert [portion.cells for portion in found] == [{0}]
