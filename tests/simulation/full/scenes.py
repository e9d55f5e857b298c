"""Faults that are harmless one by one and that chance would seldom bring together: a rule of the design behind each."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.domain.lifecycle import JobState as S

from .cells import Strike
from .template import AWAY, SCARCE, USUAL, Terms


@dataclass(frozen=True)
class Scene:
    """`rule` is what the design says about it; strikes at one boundary in one state come together."""

    name: str
    families: str
    rule: str
    way: tuple[Strike, ...]
    terms: Terms = USUAL


def _scene(name: str, families: str, rule: str, *way: tuple[str, S, str], terms: Terms = USUAL) -> Scene:
    return Scene(name, families, rule, tuple(Strike(*strike) for strike in way), terms)


SCENES: tuple[Scene, ...] = (
    _scene(
        "a machine comes a day late",
        "F1",
        "a late arrival is LIVE if the job has no other machine, else stopped and destroyed as unused",
        ("create lost after", S.QUEUED, "market create"),
        ("charge late", S.QUEUED, "market create"),
    ),
    _scene(
        "charged, and in no listing",
        "F1 F13",
        "no machine is rented without being known, and none is forgotten",
        ("create lost after", S.QUEUED, "market create"),
        ("out of sight", S.QUEUED, "market listing"),
    ),
    _scene(
        "an unanswered start, then a cancel",
        "F3 F16",
        "unused is only what never had a stage_start that is SENT, UNKNOWN or DONE",
        ("link lost after", S.PROVISIONED, "box start_stage"),
        ("says cancel", S.PROVISIONED, "commit"),
    ),
    _scene(
        "asleep while a create is unanswered",
        "F1 F6",
        "absent is what five trusted listings lack within 600 s awake: nobody looked while everybody slept",
        ("create lost before", S.QUEUED, "market create"),
        ("eight hours asleep", S.QUEUED, "market listing"),
    ),
    _scene(
        "out of the market's reach, then eight hours asleep",
        "F6 F8",
        "sleep resets every counter: evidence is looks, not minutes",
        ("host lost", S.SFT, "market listing"),
        ("eight hours asleep", S.SFT, "commit"),
    ),
    _scene(
        "lost, back, and the destroy of it does not take",
        "F5 F8",
        "the machine that works is let go first: what a LOST one costs is its disk",
        ("host lost", S.SFT, "market listing"),
        ("destroy ignored", S.VERIFIED, "market destroy"),
    ),
    _scene(
        "missing in the listing, and nobody can be asked",
        "F4 F13",
        "gone is what two listings lack and show-one calls null; an error is no null",
        ("out of the listing", S.SFT, "box status"),
        ("rate limited", S.SFT, "market show"),
    ),
    _scene(
        "the clock is set while a machine is missing",
        "F6 F13",
        "two trusted listings at least 30 s apart, by time that passed",
        ("out of the listing", S.SFT, "box status"),
        ("wall step", S.SFT, "market listing"),
    ),
    _scene(
        "a clock that was a day ahead is set right while a machine is missing",
        "F6 F13",
        "cost counts look by look, and what the clock hides between two of them costs all the same",
        ("a day ahead", S.QUEUED, "market search"),
        ("out of the listing", S.SFT, "box status"),
        ("a day back", S.SFT, "market listing"),
        ("link lost after", S.GGUF, "box status"),
    ),
    _scene(
        "a price at which the limit is soon spent",
        "F15",
        "a spent limit ends in HELD and a stop, never in a destroy",
        ("dear", S.SFT, "box status"),
    ),
    _scene(
        "training costs more than its share",
        "F15",
        "at the cap minus a reserve training is brought to a checkpoint and rescue begins",
        ("five times the price", S.SFT, "box status"),
        terms=SCARCE,
    ),
    _scene(
        "a hold that nobody answers",
        "F6 F15",
        "at most limits.hold dollars of waiting, then the machine is stopped",
        ("says hold", S.SFT, "box status"),
        ("runner dies", S.SFT, "box status"),
        terms=AWAY,
    ),
    _scene(
        "a model that comes home drop by drop, at a price",
        "F12 F15",
        "only the reserve may be spent after the training",
        ("dear", S.GGUF, "box manifest"),
        ("drips", S.GGUF, "box manifest"),
    ),
    _scene(
        "a start that only queues",
        "F8 F15",
        "a start that the market answers with queued is cancelled by a stop at once",
        ("host stops", S.SFT, "box status"),
        ("start queued", S.SFT, "market start"),
    ),
    _scene(
        "a start that only queues, and its stop never arrives",
        "F3 F8",
        "what the market shows not to have happened is asked for again",
        ("host stops", S.SFT, "box status"),
        ("start queued", S.SFT, "market start"),
        ("stop lost", S.SFT, "market stop"),
    ),
    _scene(
        "the destroy is lost, and then the model",
        "F5 F11 F13",
        "the receipt permits only while its files are there, looked at just before",
        ("destroy lost before", S.VERIFIED, "market destroy"),
        ("model deleted", S.VERIFIED, "market listing"),
    ),
    _scene(
        "the destroy is refused, the job retried and cancelled",
        "F5 F11 F13",
        "retry supersedes every receipt: only one of the current artifact set permits",
        ("destroy refused", S.VERIFIED, "market destroy"),
        ("says retry", S.VERIFIED, "market listing"),
        ("says cancel", S.QUEUED, "box prepare"),
    ),
    _scene(
        "a typed id, a hold, a resume and a cancel",
        "F13",
        "a token is void after any other word",
        ("says abandon", S.SFT, "box status"),
        ("says hold", S.SFT, "box status"),
        ("says resume", S.SFT, "market listing"),
        ("says cancel", S.SFT, "market listing"),
    ),
    _scene(
        "a done.json of another stage",
        "F12",
        "a stage is finished only when done.json names its nonce, and is its own",
        ("forged done", S.SFT, "box stage_end"),
        ("forged done", S.SFT, "box stage_end"),
    ),
    _scene(
        "yesterday's database, while something trains",
        "F13",
        "after a restore every unfinished job is held, and only resume leaves",
        ("restored", S.PROVISIONED, "box start_stage"),
    ),
)
