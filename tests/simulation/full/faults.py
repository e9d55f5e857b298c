"""What can go wrong, one row each, by the families F1..F16 of the project's list of faults.

A seed picks a few rows and how often each strikes; while the sky is clear nothing does. Every stroke is counted under
the states that the jobs were in: coverage is the cells of that table, not the number of seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from random import Random


@dataclass(frozen=True)
class Fault:
    family: str
    what: str
    often: tuple[float, ...]  # chances a stroke that a seed picks from


_SELDOM, _OFTEN, _EVENT = (0.02, 0.1), (0.1, 0.3, 0.8), (0.1, 0.4)

FAULTS: dict[str, Fault] = {
    "create lost before": Fault("F1", "the create never arrives, and no answer comes", _OFTEN),
    "create lost after": Fault("F1", "rented, but the reply is lost; listed 0, 5, 60, 600 s or 24 h later", _OFTEN),
    "charge late": Fault("F1", "what it bills is in no charge for a day", _OFTEN),
    "create error with id": Fault("F2", "an error whose body names a contract", _OFTEN),
    "create empty answer": Fault("F2", "rented, answered 200 with nothing in it", _OFTEN),
    "create refused": Fault("F15", "somebody else was faster", _OFTEN),
    "create refused, rented": Fault("F2", "refused in so many words, and rented all the same", _OFTEN),
    "other price": Fault("F2", "the machine costs more than the offer said", _OFTEN),
    "rate limited": Fault("F4", "429", _SELDOM),
    "key refused": Fault("F4", "the market does not take the key", _SELDOM),
    "another key": Fault("F4", "for a while the key is another account's: there nothing of ours is known", _EVENT),
    "listing untrusted": Fault("F4", "an error, an empty body or a page missing", _OFTEN),
    "listing behind": Fault("F4", "what is listed is what was some time ago", _OFTEN),
    "label edited": Fault("F13", "somebody edits a label in the console", _EVENT),
    "destroy lost before": Fault("F5", "the destroy never arrives", _OFTEN),
    "destroy lost after": Fault("F5", "destroyed, but the reply is lost", _OFTEN),
    "destroy lingers": Fault("F5", "accepted; listed and billed for ten minutes more", _OFTEN),
    "destroy ignored": Fault("F5", "accepted, and nothing happens", _OFTEN),
    "destroy comes back": Fault("F5", "gone from the listing for a while, then back and running", _OFTEN),
    "destroy refused": Fault("F5", "404 by the wrong key", _OFTEN),
    "stop lost": Fault("F3", "a start or stop whose reply is lost, done or not", _OFTEN),
    "start queued": Fault("F8", "the start only queues", _OFTEN),
    "sleep": Fault("F6", "the workstation sleeps for hours", _EVENT),
    "wall step": Fault("F6", "the wall clock is set an hour back or a day ahead", _EVENT),
    "power cut": Fault("F6", "power is lost, and with it what was not synced", _EVENT),
    "kill": Fault("F3", "kill -9 at some commit, call or file operation", _SELDOM),
    "second daemon": Fault("F7", "another daemon takes the lead while this one runs", _EVENT),
    "reboot": Fault("F8", "the box reboots under its stage", _EVENT),
    "box silent": Fault("F8", "sshd is dead for a while, training goes on", _EVENT),
    "host stops": Fault("F8", "the host stops the machine", _EVENT),
    "host offline": Fault("F8", "the host is offline for minutes or hours, and may come back", _EVENT),
    "address changes": Fault("F8", "another port after a restart", _EVENT),
    "host key changes": Fault("F16", "another host key", _EVENT),
    "link lost before": Fault("F16", "the connection dies before the box hears", _SELDOM),
    "link lost after": Fault("F16", "the box did it, and the answer is lost", _SELDOM),
    "half open": Fault("F16", "writes are accepted, nothing comes back", _SELDOM),
    "login refused": Fault("F16", "the key is not accepted", _SELDOM),
    "runner dies": Fault("F9", "the runner is killed without a word", _EVENT),
    "stage fails": Fault("F10", "failed.json: out of disk, diverged", _EVENT),
    "preflight fails": Fault("F12", "the machine is not what its offer said", _OFTEN),
    "data refused": Fault("F12", "prepare objects", _EVENT),
    "wrong counts": Fault("F12", "prepare counted other rows", _EVENT),
    "disk full": Fault("F10", "ENOSPC or EIO at a file operation here", _SELDOM),
    "store fails": Fault("F14", "locked, disk I/O error or full, at a commit", _SELDOM),
    "commit unsure": Fault("F14", "committed, and an error reported all the same", _SELDOM),
    "download cut": Fault("F11", "the link dies within the download", _SELDOM),
    "bit flip": Fault("F11", "a block arrives with a bit flipped", _SELDOM),
    "forged done": Fault("F12", "done.json of another nonce or stage", _EVENT),
    "forged manifest": Fault("F12", "another model, with a manifest that is true of it", _OFTEN),
    "wrong model": Fault("F12", "valid hashes of a wrong model: the proof fails", _EVENT),
    "hostile log": Fault("F12", "control sequences, endless lines, numbers that are none", _SELDOM),
    "model deleted": Fault("F13", "the person deletes the verified model before the machine is let go", _EVENT),
    "console destroys": Fault("F13", "somebody destroys the machine in the console", _EVENT),
    "console stops": Fault("F13", "somebody stops the machine in the console", _EVENT),
    "vanishes": Fault("F13", "an instance is missing from every listing, later it is back", _EVENT),
    "restored": Fault("F13", "the database of some time ago is put back", _EVENT),
    "person": Fault("F13", "cancel, hold, resume, retry, abandon, write-off at any moment", _EVENT),
    "credit gone": Fault("F15", "no credit: everything is stopped", _EVENT),
    "price changes": Fault("F15", "another price from now on", _EVENT),
}
# Strokes that come by time, not with a call.
EVENTS = tuple(name for name, fault in FAULTS.items() if fault.often is _EVENT)


@dataclass
class Sky:
    """Which faults this seed knows, and how often each strikes. `clear` ends them all."""

    chance: Random
    active: dict[str, float] = field(default_factory=dict)
    strokes: Counter[str] = field(default_factory=Counter)
    struck: Callable[[str], object] = lambda name: None
    sure: set[str] = field(default_factory=set)  # strike the next time they can
    most: int = 3  # of each fault in one seed: enough to hurt, few enough to come to an end

    @classmethod
    def of_seed(cls, chance: Random, families: Collection[str] = ()) -> Sky:
        """A few faults of all; or one of `families`, and at most two others beside it."""
        drawn = chance.choice((0, 1, 2) if families else (1, 2, 3, 4, 6, 10))
        names = chance.sample(sorted(FAULTS), drawn)
        if families:
            names.append(chance.choice(sorted(name for name, fault in FAULTS.items() if fault.family in families)))
        return cls(chance, {name: chance.choice(FAULTS[name].often) for name in names})

    def strikes(self, name: str) -> bool:
        often = self.active.get(name, 0.0)
        if name in self.sure:
            self.sure.discard(name)
        elif not often or self.strokes[name] >= self.most or self.chance.random() >= often:
            return False
        self.struck(name)
        return True

    def clear(self) -> None:
        self.active, self.sure = {}, set()
