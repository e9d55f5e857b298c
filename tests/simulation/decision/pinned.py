"""Seeds that once failed: what they showed, and what mended it.

Aims move with the tables, so each is kept in words too; the rows of tests/unit/test_plan.py keep the decision itself.
"""

from __future__ import annotations

PINNED: dict[int, str] = {
    91: "3efa41c: stages that all ended during a hold left the state behind, and the download was an illegal move",
    565: "3efa41c: a destroy typed once and never carried out was waited for with no price limit",
    25: "a clock set back made a runner look dead again after every start",
    11701: "a stop that a crash kept from being sent was waited for",
    37: "model only: a price that falls makes earlier hours cheaper (daemon/store/leases.py observe)",
    375: "model only: a status that nobody knows is recorded as free (daemon/store/leases.py observe)",
    2228: "model only: what runs between `loading` and `exited` is recorded as disk (daemon/store/leases.py observe)",
    2231: "model only: the same between `offline` and `exited`",
}
