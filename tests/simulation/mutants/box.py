"""Mistakes about the box: silence, its markers, its runner."""

from __future__ import annotations

from tests.simulation.mutants.mutant import DRIVER, EVIDENCE, HOMECOMING, PLAN, WATCH, Mutant, mutant

MUTANTS: tuple[Mutant, ...] = (
    mutant(
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
    mutant(
        "patience runs through sleep",
        "F6 F8",
        "decision",
        "hours asleep count as hours in which somebody looked",
        (EVIDENCE, "longer(s, max(since_ms, s.awake_since_ms), seconds)", "longer(s, since_ms, seconds)"),
    ),
    mutant(
        "lost at once",
        "F8",
        "decision",
        "a host out of the market's sight for a moment is given up",
        (
            PLAN,
            "    over = in_vain(s, lease.status_since, s.rules.offline_patience_s)\n    if not",
            "    over = True\n    if not",
        ),
    ),
    mutant(
        "answering box is lost",
        "F8",
        "decision",
        "a box that we reach is given up since the market does not",
        (
            PLAN,
            "    if over and (not is_ready(s, lease) or silent_for(s, lease, s.rules.offline_patience_s)):",
            "    if over:",
        ),
    ),
    mutant(
        "one broken connection",
        "F8 F16",
        "decision",
        "the first connection that breaks while the market does not see the host ends the training there",
        (
            PLAN,
            "or silent_for(s, lease, s.rules.offline_patience_s)):",
            "or s.link_down_since_ms is not None):",
        ),
    ),
    mutant(
        "exited is believed",
        "F4 F8",
        "decision",
        "a machine that the market calls exited is started, waited for and given up, while its box could be asked",
        (PLAN, "        return lease if answers(s, lease) else _halted(s, lease)", "        return _halted(s, lease)"),
        (PLAN, "        return lease if may_answer(s, lease) else Wait", "        return Wait"),
    ),
    mutant(
        "another's done",
        "F12",
        "full",
        "a done.json of another nonce ends the stage",
        (WATCH, "if isinstance(end, Done) and (end.nonce, end.stage) != (run.nonce, run.stage):", "if False:"),
    ),
    mutant(
        "dead runner is watched",
        "F8 F9",
        "decision",
        "a runner that died in a reboot is never started again",
        (PLAN, "    if runner_died(s, asked[-1]):", "    if False:"),
    ),
    mutant(
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
    mutant(
        "work on a stopped machine",
        "F8",
        "decision",
        "a machine that its host stopped is waited for, never started",
        (PLAN, "    return StartMachine(lease)", '    return Wait("it will start by itself")'),
    ),
)
