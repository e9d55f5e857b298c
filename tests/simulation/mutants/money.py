"""Mistakes about money: holds, the reserve, what is counted."""

from __future__ import annotations

from tests.simulation.mutants.mutant import BILLING, CLOCK_STEP, PLAN, RECORDS, SNAPSHOT, Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "holds cost for ever",
        "F6 F15",
        "decision",
        "a hold never stops its machine",
        (PLAN, "    spent = waited >= s.rules.hold_limit\n", "    spent = False\n"),
    ),
    mutant(
        "reserve is spent",
        "F15",
        "decision",
        "training may spend what the way home needs",
        (SNAPSHOT, " - (self.reserve if training else 0)", ""),
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
)
