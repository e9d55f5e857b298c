"""The planted bugs follow the code they are planted in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.mutate import copy, plant


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    copy(tmp_path)
    return tmp_path


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_can_be_planted(mutant: Mutant, tree: Path) -> None:
    """Every edit finds its one place, and what results still compiles."""
    plant(mutant, tree)
    for edit in mutant.edits:
        compile((tree / edit.file).read_text(), edit.file, "exec")


def test_every_family_has_a_mutant() -> None:
    """One or more planted bugs for each of the sixteen families of faults."""
    assert {f"F{n}" for n in range(1, 17)} == {family for mutant in MUTANTS for family in mutant.families.split()}
    assert len(MUTANTS) >= 24
