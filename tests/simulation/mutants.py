"""Bugs to plant: each is a mistake the design warns of, written as the edit that somebody might make.

Taken from the design's rules, not from what the simulators check. A guard has often a second one behind it (the permit
function, then a trigger); where a mistake alone would only end in the second, the edit takes that one away as well,
since both are what is to be shown as needed.
"""

from __future__ import annotations

from dataclasses import dataclass

PLAN, HOLDS, RECORDS, SNAPSHOT, BILLING = (
    f"daemon/domain/{name}.py" for name in ("plan", "holds", "records", "snapshot", "billing")
)
OPERATE, RECONCILE, ACTS, PERMITS, DRIVER, WATCH, ATTEMPTS, COMMANDS, HOMECOMING, TAKEN = (
    f"daemon/control/{name}.py"
    for name in (
        "operate", "reconcile", "acts", "permits", "driver", "watch", "attempts", "commands", "homecoming", "snapshot",
    )
)  # fmt: skip
ARTIFACTS, DATABASE, LEASES, TRIGGERS = (
    f"daemon/store/{name}.py" for name in ("artifacts", "database", "leases", "triggers")
)
FOLDER, MACHINE = "daemon/artifacts/folder.py", "daemon/domain/machine.py"


@dataclass(frozen=True)
class Edit:
    """In `file`, the one place where `old` stands becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """`families` of reference faults it belongs to; `tier` is the simulator that has to catch it."""

    name: str
    families: str
    mistake: str
    tier: str
    edits: tuple[Edit, ...]


def _mutant(name: str, families: str, tier: str, mistake: str, *edits: tuple[str, str, str]) -> Mutant:
    return Mutant(name, families, mistake, tier, tuple(Edit(*edit) for edit in edits))


_NO_PERMIT_NEEDED = (  # the database's own three checks of a destroy, taken away
    (TRIGGERS, "NEW.kind = 'destroy' AND NOT coalesce({_RECEIPT} OR {_TYPED} OR {_UNUSED}, 0)", "0"),
    (TRIGGERS, "NEW.kind = 'destroy' AND NEW.state = 'SENT' AND OLD.state = 'INTENT' AND NOT", "0 AND NOT"),
)

MUTANTS: tuple[Mutant, ...] = (
    # -- renting
    _mutant(
        "unknown create is refused",
        "F1",
        "full",
        "no answer to a create is taken for a no, and another is sent",
        (OPERATE, "error.body, OpState.UNKNOWN, str(error))", "error.body, OpState.REFUSED, str(error))"),
    ),
    _mutant(
        "absent after one listing",
        "F1 F4",
        "full",
        "one listing without the label settles an unknown create",
        (RECONCILE, "and op.absent_count >= self.timing.create_absent_listings", "and op.absent_count >= 1"),
        (RECONCILE, "and op.absent_awake_s >= self.timing.create_absent_span", ""),
    ),
    _mutant(
        "sleep counts as waiting",
        "F6",
        "full",
        "an hour asleep counts as an hour in which nothing was listed",
        (RECONCILE, "self.clock.mono() - self._last_pass if", "self.clock.boot() - self._last_pass if"),
        (RECONCILE, "self._last_pass = self.clock.mono()", "self._last_pass = self.clock.boot()"),
        (RECONCILE, "and op.absent_count >= self.timing.create_absent_listings", "and op.absent_count >= 1"),
    ),
    _mutant(
        "untrusted listing counts",
        "F4",
        "full",
        "a broken listing is applied like any other",
        (RECONCILE, "            return listing\n        self._reported", "        self._reported"),
    ),
    _mutant(
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
    _mutant(
        "call before the record",
        "F3",
        "full",
        "the request leaves before SENT is committed",
        (
            OPERATE,
            "        with self.database.write() as c:\n"
            "            operations.set_state(c, operation, OpState.SENT, self.clock.wall_ms())\n"
            "        self.acted.set()\n        self.in_flight.add(operation)\n"
            "        try:\n            reply = await call()\n",
            "        self.acted.set()\n        self.in_flight.add(operation)\n"
            "        try:\n            reply = await call()\n"
            "            with self.database.write() as c:\n"
            "                operations.set_state(c, operation, OpState.SENT, self.clock.wall_ms())\n",
        ),
    ),
    _mutant(
        "rents without looking",
        "F1 F13",
        "full",
        "no listing is asked for before a create",
        (ACTS, "        ours = [i for i in listing.instances if", "        ours = [i for i in () if"),
        (
            RECONCILE,
            "            if lease is None and ids.label_install(instance.label) == install:",
            "            if lease is None and False:",
        ),
    ),
    _mutant(
        "rents while a create is open",
        "F1",
        "decision",
        "the next machine is looked for while the last is unknown",
        (PLAN, "    if s.open(Kind.CREATE):\n", "    if False:\n"),
    ),
    _mutant(
        "late arrival keeps running",
        "F1",
        "full",
        "a machine that came too late is neither stopped nor returned",
        (RECONCILE, "        await self._end_late_arrivals()\n", ""),
    ),
    _mutant(
        "start left queued",
        "F8 F15",
        "full",
        "a start that only queues is left to bill when the GPU frees",
        (OPERATE, "        if reply.queued:\n", "        if False:\n"),
    ),
    # -- letting go
    _mutant(
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
    _mutant(
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
    _mutant(
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
    _mutant(
        "destroy never asked again",
        "F5",
        "decision",
        "a destroy that went nowhere is waited for for ever",
        (PLAN, '        return Destroy(lease, "the market still lists it")', '        return Wait("surely soon")'),
    ),
    _mutant(
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
    _mutant(
        "budget destroys",
        "F15",
        "full",
        "spending the limit lets the machine go",
        (
            PLAN,
            'return HoldJob(HoldReason.BUDGET, "limits.cost minus what the way home needs is spent")',
            'return Destroy(s.lease, "too dear")',
        ),
        (PERMITS, "        if not any(op.may_have_begun_work for op in history):", "        if True:"),
        *_NO_PERMIT_NEEDED,
    ),
    _mutant(
        "permit of an old set",
        "F11 F13",
        "full",
        "a receipt of an earlier attempt still permits",
        (
            ARTIFACTS,
            "            _R.attempt == job.attempt,\n            _R.manifest_sha256 == job.manifest_sha256,\n"
            "            _R.id.not_in(select(_S.receipt_id)),\n",
            "",
        ),
        *_NO_PERMIT_NEEDED,
    ),
    _mutant(
        "files are not looked at",
        "F11",
        "full",
        "the permit believes the receipt without a look at the disk",
        (
            PERMITS,
            "if receipt is not None and (problem := recheck(_receipt(receipt))):",
            'if receipt is not None and (problem := ""):',
        ),
    ),
    _mutant(
        "token outlives a resume",
        "F13",
        "full",
        "an id typed before a resume still permits after it",
        (COMMANDS, "            artifacts.void_tokens(c, row.id, self._now)\n", ""),
    ),
    _mutant(
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
    # -- the box
    _mutant(
        "silence is failure",
        "F16",
        "full",
        "a lost connection fails the stage",
        (
            DRIVER,
            "        except LinkLost as error:\n            await self._out_of_contact(s, error)",
            "        except LinkLost as error:\n            await self._hold(s, HoldReason.STAGE_FAILED, str(error))",
        ),
    ),
    _mutant(
        "lost at once",
        "F8",
        "decision",
        "a host out of the market's sight for a moment is given up",
        (
            PLAN,
            "    over = _longer(s, lease.status_since, s.rules.offline_patience_s)\n    if not",
            "    over = True\n    if not",
        ),
    ),
    _mutant(
        "answering box is lost",
        "F8",
        "decision",
        "a box that we reach is given up since the market does not",
        (PLAN, "    if over and not (ready and s.link_down_since_ms is None):", "    if over:"),
    ),
    _mutant(
        "another's done",
        "F12",
        "full",
        "a done.json of another nonce ends the stage",
        (WATCH, "    if done.nonce != run.nonce or done.stage != run.stage:", "    if False:"),
    ),
    _mutant(
        "dead runner is watched",
        "F8 F9",
        "decision",
        "a runner that died in a reboot is never started again",
        (PLAN, "    if _runner_died(s, asked[-1]):", "    if False:"),
    ),
    _mutant(
        "manifest of nobody",
        "F12",
        "full",
        "a manifest that done.json does not name is taken",
        (
            HOMECOMING,
            "        if promised != sha256 or hashlib.sha256(text.encode()).hexdigest() != sha256:",
            "        if False:",
        ),
    ),
    _mutant(
        "work on a stopped machine",
        "F8",
        "decision",
        "a machine that its host stopped is waited for, never started",
        (PLAN, "    return StartMachine(lease)", '    return Wait("it will start by itself")'),
    ),
    # -- money
    _mutant(
        "holds cost for ever",
        "F6 F15",
        "decision",
        "a hold never stops its machine",
        (PLAN, "    spent = _waited(s, lease) >= s.rules.hold_limit\n", "    spent = False\n"),
    ),
    _mutant(
        "reserve is spent",
        "F15",
        "decision",
        "training may spend what the way home needs",
        (PLAN, "s.cost >= limit - s.rules.reserve:", "s.cost >= limit:"),
    ),
    _mutant(
        "stop before rescue",
        "F15",
        "decision",
        "the machine is stopped at the budget before anything is saved",
        (PLAN, "    if rule.rescue is Rescue.EVERYTHING and not s.rescued", "    if False and not s.rescued"),
    ),
    _mutant(
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
    # -- this workstation
    _mutant(
        "two leaders",
        "F7",
        "full",
        "a daemon that was overtaken goes on writing",
        (DATABASE, "        if self.epoch is None or current != self.epoch:", "        if False:"),
    ),
    _mutant(
        "receipt before the disk",
        "F6 F3",
        "full",
        "the receipt is stored before the folder is durable",
        (
            FOLDER,
            "        incoming.rename(final)\n        platform.sync_folder(final.parent)\n"
            "        platform.sync_folder(models)\n",
            "        incoming.rename(final)\n",
        ),
    ),
    _mutant(
        "full disk is done",
        "F10",
        "full",
        "files that are not whole count as downloaded",
        (
            TAKEN,
            "    return {file.path for file in load(Manifest, job.manifest_json).files} <= complete",
            "    return bool(complete) or bool(load(Manifest, job.manifest_json).files)",
        ),
    ),
    _mutant(
        "restored is as before",
        "F13",
        "full",
        "a database from yesterday goes on as if nothing had happened since",
        (
            "daemon/store/leader.py",
            '        elif known and (known["epoch"], known["event"]) > (stored, _last_event(c)):',
            "        elif False:",
        ),
    ),
    _mutant(
        "store fault ends the driver",
        "F14",
        "full",
        "a database that cannot be written for a moment ends the job's actor",
        (
            "daemon/control/supervisor.py",
            '                log.error("store.unusable", job=driver.job_id, error=str(error))\n'
            "                await asyncio.sleep(CRASH_PAUSE_S)\n            except Exception as error:",
            "                break\n            except Exception as error:",
        ),
    ),
    _mutant(
        "answer with an error is no machine",
        "F2",
        "full",
        "a create whose reply names no instance is refused, not unknown",
        (
            OPERATE,
            'self._resolve(operation, OpState.UNKNOWN, "the reply names no instance")',
            'self._resolve(operation, OpState.REFUSED, "the reply names no instance")',
        ),
    ),
)
