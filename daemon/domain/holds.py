"""Why a job waits for its person: one row a reason.

A hold is orthogonal to the state. Default rule: rescue what is valuable while that makes progress, then wait for at
most `limits.hold` dollars, then stop the machine: its data is kept and only its disk is billed. It never destroys.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HoldReason(StrEnum):
    BY_PERSON = "BY_PERSON"
    INTEGRATION = "INTEGRATION"
    DATA = "DATA"
    STAGE_FAILED = "STAGE_FAILED"
    VERIFY_FAILED = "VERIFY_FAILED"
    NOT_VERIFIED = "NOT_VERIFIED"
    TRANSFER_FAILED = "TRANSFER_FAILED"
    DISK_FULL = "DISK_FULL"
    HOST_KEY = "HOST_KEY"
    HOST_STOPPED = "HOST_STOPPED"
    GONE = "GONE"
    BUDGET = "BUDGET"
    TIME = "TIME"
    LOSS_NEAR = "LOSS_NEAR"
    NO_CREDIT = "NO_CREDIT"
    CREDENTIALS = "CREDENTIALS"
    UNANSWERED = "UNANSWERED"
    NO_OFFERS = "NO_OFFERS"
    PROVISIONING = "PROVISIONING"
    CANCEL_WISH = "CANCEL_WISH"
    ASK_DESTROY = "ASK_DESTROY"
    ARTIFACT_LOST = "ARTIFACT_LOST"
    RESTORED = "RESTORED"
    INTERNAL = "INTERNAL"


# These answer what a person asked for before. Any other hold keeps a cancel waiting: it goes on when the hold ends.
ANSWERS = (HoldReason.BY_PERSON, HoldReason.CANCEL_WISH)


class Rescue(StrEnum):
    """What is brought home before the waiting begins."""

    NOTHING = "nothing"
    EVERYTHING = "outputs and the newest whole checkpoint"


class Release(StrEnum):
    """What becomes of the machine while the hold lasts."""

    RUN_TO_LIMIT = "runs until limits.hold dollars are spent waiting, then is stopped"
    RETURN_UNUSED = "returned at once: nothing was started on it"
    STOP_NOW = "stopped at once: waiting for it to run brings nothing; returned where nothing was started on it"


@dataclass(frozen=True)
class Hold:
    meaning: str
    rescue: Rescue
    release: Release
    advice: str
    commands: tuple[str, str]


R, W, N = Release.RUN_TO_LIMIT, Rescue.EVERYTHING, Rescue.NOTHING
_RESUME = "jobctl resume {job}"
_CANCEL = "jobctl cancel {job}"
_RETRY = "jobctl retry {job}"
_ABANDON = "jobctl abandon {job}"
_SUBMIT = "jobctl submit JOB.yaml --again"  # once the held job has ended: until then its name is taken

HOLDS: dict[HoldReason, Hold] = {
    HoldReason.BY_PERSON: Hold("held by you", W, R, "go on when you are ready", (_RESUME, _CANCEL)),
    HoldReason.INTEGRATION: Hold(
        "the integration line is missing or its counts differ from the spec",
        N,
        Release.RETURN_UNUSED,
        "mend the data file or the counts under `integration:`; cancel it, then submit a new one",
        (_CANCEL, _SUBMIT),
    ),
    HoldReason.DATA: Hold(
        "the data or the base model was refused on the box",
        N,
        Release.RETURN_UNUSED,
        "mend what is named (jobctl data-check FILE looks at data); cancel it, then submit a new one",
        (_CANCEL, _SUBMIT),
    ),
    HoldReason.STAGE_FAILED: Hold(
        "a stage failed on the box", W, R, "read the log; retry resumes from the newest checkpoint", (_RETRY, _CANCEL)
    ),
    HoldReason.VERIFY_FAILED: Hold(
        "the model that arrived is not the one that was trained",
        N,
        R,
        "the machine still has it; retry --from gguf converts and fetches again",
        (_RETRY + " --from gguf", _ABANDON),
    ),
    HoldReason.NOT_VERIFIED: Hold(
        "nothing is wrong with the model so far, but a level of verification cannot run on this computer",
        N,
        R,
        "mend what is named (memory, a package, the base model), then resume; or accept the level below the one that "
        "could not run, L4 or L3 but no less, and the receipt says who did",
        (_RESUME, "jobctl accept {job} --level LEVEL"),
    ),
    HoldReason.TRANSFER_FAILED: Hold(
        "bytes arrive that do not hash to what the box promised",
        N,
        R,
        "resume tries again; where the model's files come so again, retry --from gguf makes them anew",
        (_RESUME, _ABANDON),
    ),
    HoldReason.DISK_FULL: Hold(
        "this disk is full, not there, or does not take what is written to it",
        N,
        R,
        "make room, or mend what is named, then resume",
        (_RESUME, _ABANDON),
    ),
    HoldReason.HOST_KEY: Hold(
        "another machine answers at the address, or it failed the proof",
        N,
        R,
        "nothing was sent to it; look at the instance in the market's console",
        (_RESUME, _ABANDON),
    ),
    HoldReason.HOST_STOPPED: Hold(
        "the machine is stopped and does not come back",
        N,
        Release.STOP_NOW,
        "its data is kept there; resume starts it again, once its GPU is free. Meanwhile the market's own client can "
        "copy what lies on it, unverified: vastai copy INSTANCE:/workspace/homeport/run DIR",
        (_RESUME, _ABANDON),
    ),
    HoldReason.GONE: Hold(
        "the machine was deleted by somebody else, or written off",
        N,
        R,
        "resume rents a new one and goes on from what is here",
        (_RESUME, _CANCEL),
    ),
    HoldReason.BUDGET: Hold(
        "the cost limit is reached",
        W,
        Release.STOP_NOW,
        "what could be reached is saved here; the limit holds: cancel it, then submit with a higher limits.cost. Once "
        "the training is done, jobctl resume spends on the way home what was kept for it once more; and where the "
        "machine had stopped before anything was saved, it is asked whether that is so",
        (_CANCEL, _ABANDON),
    ),
    HoldReason.TIME: Hold(
        "the time limit is reached", W, Release.STOP_NOW, "resume gives it the same time again", (_RESUME, _ABANDON)
    ),
    HoldReason.LOSS_NEAR: Hold(
        "the contract or the account's credit ends too soon to go on safely",
        W,
        R,
        "top up, or let the machine go; what it has is being saved",
        (_RESUME, _ABANDON),
    ),
    HoldReason.NO_CREDIT: Hold("the market account has no credit", W, R, "top up, then resume", (_RESUME, _CANCEL)),
    HoldReason.CREDENTIALS: Hold(
        "the market refuses the key",
        N,
        R,
        "mend the key, run jobctl up so that the daemon reads it, then resume",
        ("jobctl up", _RESUME),
    ),
    HoldReason.UNANSWERED: Hold(
        "the market did not answer whether it rented a machine out, and does not say what it charged",
        N,
        Release.RETURN_UNUSED,
        "a machine that comes of it is known by its label. Let the key read billing (billing_read) and run jobctl up: "
        "once charges can be read it is known whether there is one, and the job goes on by itself",
        ("jobctl doctor", "jobctl up"),
    ),
    HoldReason.NO_OFFERS: Hold(
        "no machine on the market fits",
        N,
        R,
        "resume looks again. With a looser machine: or limits: cancel it, then submit a new one",
        (_RESUME, _CANCEL),
    ),
    HoldReason.PROVISIONING: Hold(
        "several machines in a row did not become ready",
        N,
        Release.RETURN_UNUSED,
        "resume tries others",
        (_RESUME, _CANCEL),
    ),
    HoldReason.CANCEL_WISH: Hold(
        "cancelled, but the machine holds outputs that are not verified here",
        W,
        R,
        "resume goes on; cancel --discard or abandon gives them up",
        (_RESUME, _ABANDON),
    ),
    HoldReason.ASK_DESTROY: Hold(
        "verified; the spec says `destroy: ask`", N, R, "look at the model, then resume destroys", (_RESUME, _ABANDON)
    ),
    HoldReason.ARTIFACT_LOST: Hold(
        "the verified model was deleted or changed on this disk before the machine was let go",
        N,
        R,
        "the machine still has it; resume fetches and verifies it again",
        (_RESUME, _ABANDON),
    ),
    HoldReason.RESTORED: Hold(
        "the database was restored or copied", N, R, "check the leases, then resume", ("jobctl leases", _RESUME)
    ),
    HoldReason.INTERNAL: Hold(
        "an error in homeport itself", N, R, "see the log; resume tries again", (_RESUME, _ABANDON)
    ),
}
