"""Bugs to plant: each is a mistake the design warns of, written as the edit that somebody might make.

Taken from the design's rules, not from what the simulators check. A guard has often a second one behind it (the permit
function, then a trigger); where a mistake alone would only end in the second, the edit takes that one away as well,
since both are what is to be shown as needed.
"""

from __future__ import annotations

from tests.simulation.mutants import box, letting_go, money, renting, workstation
from tests.simulation.mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = (*renting.MUTANTS, *letting_go.MUTANTS, *box.MUTANTS, *money.MUTANTS, *workstation.MUTANTS)
