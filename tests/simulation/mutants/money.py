"""Mistakes about money: holds, the reserve, what is counted."""

from __future__ import annotations

from dataclasses import replace

from tests.simulation.mutants.mutant import BILLING, CLOCK_STEP, DRIVER, PLAN, RECORDS, SNAPSHOT, Mutant, mutant

# For each tier.
_BOTH = (
    mutant(
        "holds cost for ever",
        "F6 F15",
        "decision",
        "a hold never stops its machine",
        (PLAN, "    spent = _hold_cost(s, lease) >= s.rules.hold_limit\n", "    spent = False\n"),
    ),
    mutant(
        "reserve is spent",
        "F15",
        "decision",
        "training may spend what the way home needs",
        (SNAPSHOT, " - (self.reserve if training else 0)", ""),
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    *_BOTH,
    *(replace(m, name=f"{m.name}, on the real store", tier="full") for m in _BOTH),
    mutant(
        "no reserve without a price",
        "F15",
        "full",
        "what the way home needs is that of the estimate, which knows no machine",
        (DRIVER, "        if s.lease is None:\n", "        if True:\n"),
    ),
    mutant(
        "stop before rescue",
        "F15",
        "decision",
        "the machine is stopped at the budget before anything is saved",
        (PLAN, "    if rule.rescue is Rescue.EVERYTHING and not s.rescued", "    if False and not s.rescued"),
    ),
    mutant(
        "cost forgets the disk",
        "F15",
        "decision",
        "a stopped machine is counted as free",
        (
            RECORDS,
            "        return self.storage_per_hour if halted else self.price_per_hour",
            "        return 0 if halted else self.price_per_hour",
        ),
        (
            BILLING,
            "    return Span(accrued(max(storage, last.storage_per_hour), elapsed_ms), 0, elapsed_ms)",
            "    return Span(0, 0, elapsed_ms)",
        ),
    ),
    mutant(
        "times ahead stay ahead",
        "F6 F13",
        "full",
        "what was stored in the future of a clock that was set back stays there, and costs nothing until then",
        (CLOCK_STEP, "    if step < LEAST_MS:\n", "    if step >= 0:\n"),
    ),
    mutant(
        "an act outlives its money",
        "F12 F15",
        "full",
        "a download that would go on for hours is not ended when limits.cost is spent",
        (
            DRIVER,
            "        if isinstance(self._doing, LONG) and isinstance(self._decided(), CUTS):\n",
            "        if False:\n",
        ),
    ),
)
