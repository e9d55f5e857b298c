"""Mistakes on the way out: what is called gone, and what permits a destroy."""

from __future__ import annotations

from tests.simulation.mutants.mutant import (
    ARTIFACTS,
    FIRST_SCHEMA,
    PERMITS,
    PLAN,
    RECONCILE,
    RECORDS,
    SNAPSHOT,
    Mutant,
    mutant,
)

_NO_PERMIT_NEEDED = (  # the database's own three checks of a destroy, taken away where they are put in
    (FIRST_SCHEMA, "destroy_without_permit BEFORE INSERT ON operations WHEN ",
     "destroy_without_permit BEFORE INSERT ON operations WHEN 0 AND "),
    (FIRST_SCHEMA, "destroy_sent_without_permit BEFORE UPDATE OF state ON operations WHEN ",
     "destroy_sent_without_permit BEFORE UPDATE OF state ON operations WHEN 0 AND "),
)  # fmt: skip

MUTANTS: tuple[Mutant, ...] = (
    mutant(
        "gone without asking",
        "F4 F13",
        "full",
        "an error of show-one is taken for its null",
        (
            RECONCILE,
            '            log.info("gone.unconfirmed", instance=lease.instance_id, error=str(error))\n'
            "            return\n",
            "            seen = None\n",
        ),
    ),
    mutant(
        "gone from another account",
        "F4",
        "full",
        "what another account's list does not show is gone",
        ("daemon/control/accounts.py", "    if ours is not None and (held or asked):", "    if False:"),
    ),
    mutant(
        "gone after one listing",
        "F4 F5",
        "full",
        "absence from one listing confirms a destroy",
        (RECONCILE, "ABSENT_LISTINGS = 2", "ABSENT_LISTINGS = 1"),
        (RECONCILE, "boot - self._missed.get(lease.id, boot) >= self.timing.gone_span", "True"),
        (
            RECONCILE,
            "            seen = await self.operator.market.show(lease.instance_id)\n",
            "            seen = None\n",
        ),
    ),
    mutant(
        "gone by the wall clock",
        "F6",
        "full",
        "a clock that is set makes half a minute of one look",
        (RECONCILE, "        boot = self.clock.boot()\n", "        boot = self.clock.wall_ms() / 1000\n"),
        (
            RECONCILE,
            "missed_since.get(lease.id, self.clock.boot())",
            "missed_since.get(lease.id, self.clock.wall_ms() / 1000)",
        ),
        (RECONCILE, "ABSENT_LISTINGS = 2", "ABSENT_LISTINGS = 1"),
    ),
    mutant(
        "destroyed when asked",
        "F5",
        "decision",
        "the job is over once the destroy was sent",
        (
            SNAPSHOT,
            "        return not self.held_leases and self.open(Kind.CREATE, Kind.DESTROY) is None",
            "        return self.open(Kind.CREATE, Kind.DESTROY) is None and all(map(self.destroys, self.held_leases))",
        ),
    ),
    mutant(
        "destroy never asked again",
        "F5",
        "decision",
        "a destroy that went nowhere is waited for for ever",
        (PLAN, '        return _destroy(s, lease, "the market still lists it")', '        return Wait("surely soon")'),
    ),
    mutant(
        "unused after a start",
        "F3",
        "full",
        "a stage whose start was not answered leaves its machine unused",
        (
            RECORDS,
            "self.kind is Kind.STAGE_START and self.state not in (OpState.ABSENT, OpState.REFUSED)",
            "self.kind is Kind.STAGE_START and self.state is OpState.DONE",
        ),
        *_NO_PERMIT_NEEDED,
    ),
    mutant(
        "budget destroys",
        "F15",
        "full",
        "spending the limit lets the machine go",
        (
            PLAN,
            'return HoldJob(HoldReason.BUDGET, "limits.cost minus what the way home needs is spent")',
            'return _destroy(s, s.lease, "too dear")',
        ),
        (PERMITS, "        if not any(op.may_have_begun_work for op in history):", "        if True:"),
        *_NO_PERMIT_NEEDED,
    ),
    mutant(
        "permit of an old set",
        "F11 F13",
        "full",
        "a receipt of an earlier attempt still permits",
        (
            ARTIFACTS,
            '        _R.attempt == bindparam("attempt"),\n        _R.manifest_sha256 == bindparam("manifest"),\n'
            "        _R.id.not_in(select(_S.receipt_id)),\n",
            "",
        ),
        *_NO_PERMIT_NEEDED,
    ),
    mutant(
        "files are not looked at",
        "F11",
        "full",
        "the permit believes the receipt without a look at the disk",
        (
            PERMITS,
            "recheck(_receipt(receipt)) if receipt is not None else None",
            "None",
        ),
    ),
    mutant(
        "token outlives another word",
        "F13",
        "full",
        "an id typed before a hold, a resume or a cancel still permits after it",
        (ARTIFACTS, "values(void_at=now_ms)", "values(void_at=None)"),
    ),
    mutant(
        "cancel forgets the work",
        "F13",
        "full",
        "cancel lets a machine go whose outputs are not here",
        (
            SNAPSHOT,
            "        return not self.work_started(lease) or self.receipt is not None or typed",
            "        return not self.work_started(lease) or self.receipt is not None or typed "
            "or self.job.wish is not None",
        ),
        (PERMITS, "        if not any(op.may_have_begun_work for op in history):", "        if job.wish is not None:"),
        *_NO_PERMIT_NEEDED,
    ),
)
