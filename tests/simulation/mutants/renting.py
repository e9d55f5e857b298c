"""Mistakes on the way to a machine: a create without an answer, a listing that is believed too soon or too late."""

from __future__ import annotations

from tests.simulation.mutants.mutant import ACT_MACHINE, OPERATE, PLAN, RECONCILE, Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "unknown create is refused",
        "F1",
        "full",
        "no answer to a create is taken for a no, and another is sent",
        (OPERATE, "error.body, OpState.UNKNOWN, str(error))", "error.body, OpState.REFUSED, str(error))"),
    ),
    mutant(
        "absent after one listing",
        "F1 F4",
        "full",
        "one listing without the label settles an unknown create",
        (RECONCILE, "and op.absent_count >= self.timing.create_absent_listings", "and op.absent_count >= 1"),
        (RECONCILE, "and op.absent_awake_s >= self.timing.create_absent_span", ""),
    ),
    mutant(
        "sleep counts as waiting",
        "F6",
        "full",
        "an hour asleep counts as an hour in which nothing was listed",
        (RECONCILE, "self.clock.mono() - self._last_pass if", "self.clock.boot() - self._last_pass if"),
        (RECONCILE, "self._last_pass = self.clock.mono()", "self._last_pass = self.clock.boot()"),
        (RECONCILE, "and op.absent_count >= self.timing.create_absent_listings", "and op.absent_count >= 1"),
    ),
    mutant(
        "untrusted listing counts",
        "F4",
        "full",
        "a broken listing is applied like any other",
        (RECONCILE, "            return listing\n        self._reported", "        self._reported"),
    ),
    mutant(
        "sent is absent after a crash",
        "F3",
        "full",
        "what was sent when we died is taken for never sent",
        (
            OPERATE,
            'operations.set_state(c, op.id, OpState.UNKNOWN, now_ms, error=f"{why} before the answer")',
            "operations.set_state(c, op.id, OpState.UNKNOWN, now_ms, error=why)\n"
            "            operations.set_state(c, op.id, OpState.ABSENT, now_ms, error=why)",
        ),
    ),
    mutant(
        "call before the record",
        "F3",
        "full",
        "the request leaves before SENT is committed",
        (
            OPERATE,
            "        self.sent(operation)\n"
            "        self.acted.set()\n        self.in_flight.add(operation)\n"
            "        try:\n            reply = await call()\n",
            "        self.acted.set()\n        self.in_flight.add(operation)\n"
            "        try:\n            reply = await call()\n"
            "            with self.database.write() as c:\n"
            "                operations.set_state(c, operation, OpState.SENT, self.clock.wall_ms())\n",
        ),
    ),
    mutant(
        "rents without looking",
        "F1 F13",
        "full",
        "no listing is asked for before a create",
        (ACT_MACHINE, "    ours = [i for i in listing.instances if", "    ours = [i for i in () if"),
        (
            RECONCILE,
            "            if lease is None and ids.label_install(instance.label) == install:",
            "            if lease is None and False:",
        ),
    ),
    mutant(
        "rents while a create is open",
        "F1",
        "decision",
        "the next machine is looked for while the last is unknown",
        (PLAN, "    if s.open(Kind.CREATE):\n", "    if False:\n"),
    ),
    mutant(
        "late arrival keeps running",
        "F1",
        "full",
        "a machine that came too late is neither stopped nor returned",
        (RECONCILE, "        await self._end_late_arrivals()\n", ""),
    ),
    mutant(
        "start left queued",
        "F8 F15",
        "full",
        "a start that only queues is left to bill when the GPU frees",
        (OPERATE, "        if not reply.queued:\n", "        if True:\n"),
    ),
    mutant(
        "a stop is asked for once",
        "F3 F8",
        "full",
        "the stop of a queued start that did not happen is not asked for again",
        (PLAN, "        if stop_failed(s, lease):\n", "        if False:\n"),
        (PLAN, "        if may_start or stop_failed(s, lease):\n", "        if False:\n"),
    ),
)
