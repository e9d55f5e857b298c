"""How a run is led to a cell: strikes that bring the job to where its aim can happen.

The happy path passes few of the boundaries; the others lie behind a hold, a lost host, a second attempt. Each row of
`ROADS` names what has to happen in which state for an action to be asked for there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from daemon.domain.lifecycle import JobState as S
from tests.simulation.coverage import Cell


@dataclass(frozen=True)
class Strike:
    """`fault` at the first boundary that fits; None fits any."""

    fault: str
    state: str | None = None
    action: str | None = None
    side: str | None = None

    may_come_in_a_hold = True

    def fits(self, state: str, action: str, side: str) -> bool:
        return self.state in (None, state) and self.action in (None, action) and self.side in (None, side)


HOLD, RETRY, ABANDON, CANCEL = "jobctl hold", "jobctl retry", "jobctl abandon", "jobctl cancel"
AWAY, STOPS, DAY = "the host goes away", "the host stops it", "wall clock on 1 d"
ONE = {S.QUEUED: "Provision", S.PROVISIONED: "StartStage", S.DOWNLOADED: "Verify", S.VERIFIED: "Wait"}
WORKING = (S.SFT, S.DPO, S.GGUF)


def _at(fault: str, state: S) -> Strike:
    return Strike(fault, state, ONE.get(state, "Watch"), "before")


def road(aim: Cell, rng: random.Random) -> tuple[list[Strike], bool | None]:
    """The strikes in order, the aim's own last; and whether the spec has to ask before it destroys."""
    state, action = S(aim.state), aim.action
    ask = None
    way: list[Strike] = []
    again = [Strike(RETRY, S.SFT, "Watch", "before")]
    held = [_at(HOLD, state)]
    if state is S.VERIFIED:
        ask = action in ("HoldJob", "StopMachine", "Save", "Wait")
    match action:
        case "StartMachine":
            way = [_at(STOPS, state)]
        case "StopMachine":
            # A box that nobody calls stops itself as soon as we would, by the price at which it was rented.
            way = [] if state is S.VERIFIED else held
            uncalled = state in (S.GGUF, S.DOWNLOADED, S.VERIFIED)
            way = [*way, Strike("the price rises", state, "Wait")] if uncalled else way
        case "StopStages":
            way = again if state is S.QUEUED else [_at(DAY, state)]
        case "Save":
            way = (again if state in (S.QUEUED, S.PROVISIONED) else []) + held
        case "MarkLost":
            way = (again if state in (S.QUEUED, S.PROVISIONED) else []) + [_at(AWAY, state)]
        case "Watch" if state not in WORKING:
            way = held
        case "Destroy" if state is not S.VERIFIED:
            way = [_at(rng.choice((ABANDON, "jobctl cancel --discard")), state)]
        case "Move" if state in (S.PROVISIONED, S.SFT, S.DPO, S.DOWNLOADED):
            way = [_at(ABANDON, state)]
        case "HoldJob" if state in (S.GGUF, S.DOWNLOADED):
            way = [_at(CANCEL, state)]
        case "HoldJob" if state is S.PROVISIONED:
            way = [_at("sshd dead for 20 min", state), _at(DAY, state)]
        case "HoldJob" if state in (S.QUEUED, S.SFT, S.DPO):
            way = [_at(rng.choice((DAY, "the contract ends soon")), state)]
        case "Rent" | "Prove" | "Provision" if state is not S.QUEUED:
            way = [_at(AWAY, state)]
        case "StartStage" if state is S.GGUF:
            way = [_at("reboot", state)]
        case "Wait" if state is not S.QUEUED:
            way = [_at(HOLD if state is S.DOWNLOADED else STOPS, state)] if state is not S.VERIFIED else []
    if aim.fault == "gone, and back":
        way.insert(0, Strike("console destroys it", S.QUEUED, "Prove", "before"))
    return [*way, Strike(aim.fault, aim.state, aim.action, aim.side)], ask
