"""The planted bugs follow the code they are planted in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.mutate import ROOT, SEEDS, copy, hunt, plant

SOONEST = "holds cost for ever"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_can_be_planted(mutant: Mutant, tmp_path: Path) -> None:
    """Every edit finds its one place, and what results still compiles."""
    for file in {edit.file for edit in mutant.edits}:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)

    plant(mutant, tmp_path)

    for edit in mutant.edits:
        compile((tmp_path / edit.file).read_text(), edit.file, "exec")


def test_a_tree_to_plant_in_has_all_of_the_source(tmp_path: Path) -> None:
    """What is copied runs: every file that a bug is planted in, and both simulators."""
    copy(tmp_path)

    needed = {edit.file for mutant in MUTANTS for edit in mutant.edits}
    needed |= {f"tests/simulation/{mutant.tier}/__main__.py" for mutant in MUTANTS}
    assert all((tmp_path / file).is_file() for file in needed)


def test_a_mutant_is_caught() -> None:
    """The whole way, for the one that is caught soonest: planted, run, accused, and the clean tree passes that seed."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == SOONEST)

    assert "I11" in (hunt(mutant, SEEDS) or "")


def test_every_family_has_a_mutant() -> None:
    """One or more planted bugs for each of the sixteen families of faults."""
    assert {f"F{n}" for n in range(1, 17)} == {family for mutant in MUTANTS for family in mutant.families.split()}
    assert len(MUTANTS) >= 24
