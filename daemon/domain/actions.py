"""What `plan` can ask for, as values: control/acts.py does them."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import Trigger
from daemon.domain.records import Lease, StageRun


@dataclass(frozen=True)
class Action:
    """One thing to do. `interruptible`: a person's command may cut it short, since doing it again costs nothing."""

    interruptible = False


@dataclass(frozen=True)
class Wait(Action):
    why: str
    interruptible = True


@dataclass(frozen=True)
class Rent(Action):
    pass


@dataclass(frozen=True)
class Prove(Action):
    """Connect for the first time, check the proof, pin the host key."""

    lease: Lease
    interruptible = True


@dataclass(frozen=True)
class Provision(Action):
    """Environment, preflight, payload, data, prepare."""

    lease: Lease
    interruptible = True


@dataclass(frozen=True)
class StartMachine(Action):
    lease: Lease


@dataclass(frozen=True)
class StopMachine(Action):
    lease: Lease
    why: str


@dataclass(frozen=True)
class StartStage(Action):
    lease: Lease
    run: StageRun


@dataclass(frozen=True)
class Watch(Action):
    """Look at the box: status, events, log, the end of the current stage."""

    lease: Lease
    run: StageRun
    interruptible = True


@dataclass(frozen=True)
class StopStages(Action):
    """Ask the box for a checkpoint and a clean stop."""

    lease: Lease
    interruptible = True


@dataclass(frozen=True)
class FetchManifest(Action):
    lease: Lease
    interruptible = True


@dataclass(frozen=True)
class Download(Action):
    lease: Lease
    interruptible = True


@dataclass(frozen=True)
class Save(Action):
    """Bring home what a held or cancelled job has: outputs and the newest whole checkpoint."""

    lease: Lease
    interruptible = True


@dataclass(frozen=True)
class Verify(Action):
    interruptible = True


@dataclass(frozen=True)
class Destroy(Action):
    lease: Lease
    why: str


@dataclass(frozen=True)
class MarkLost(Action):
    lease: Lease
    why: str


@dataclass(frozen=True)
class Move(Action):
    trigger: Trigger
    why: str = ""


@dataclass(frozen=True)
class HoldJob(Action):
    reason: HoldReason
    detail: str = field(default="")


TALKS_TO_BOX = (Prove, Provision, StartStage, Watch, StopStages, FetchManifest, Download, Save)
