"""The error tree. A class exists when somebody acts differently on it; `hint` is the next command to type.

HomeportError                    shown to the person as it is
├── SpecError                    the job file or its data must be mended (exit 2)
├── NoSuchJob                    no such job, or the name is ambiguous (exit 3)
├── DaemonUnreachable            start the daemon (exit 4)
├── CredentialsRefused           the market does not take the key (exit 5)
├── NothingFits                  no offer passes the filters (exit 6)
├── Refused                      the request is legal in another state; the message says which (exit 1)
├── WorkstationUnfit             this computer cannot verify or store the model (exit 1)
├── StoreError                   the database cannot be used; nothing may be sent to the market
│   ├── Damaged                  SQLite cannot make sense of the file: a copy may replace it
│   ├── LostRace                 the row changed since it was read: reload, decide again
│   └── Fenced                   a newer daemon leads, or uses another file: stop
├── MarketError                  the market did not do what was asked
│   ├── MarketUnreachable        no answer, or none that can be read: the effect is UNKNOWN
│   ├── RateLimited              definite refusal, try later
│   ├── OfferGone                definite refusal, try the next offer
│   ├── NoCredit                 definite refusal, tell the person
│   └── MarketRefused            any other definite refusal
└── BoxError                     the box did not do what was asked
    ├── LinkLost                 out of contact: no evidence about the work
    │   └── Overdue              a command did not end in its time, over a connection that lives
    ├── AccessDenied             the key is not (or no longer) accepted there
    ├── HostKeyChanged           another machine answers: hold
    ├── RemoteFailed             a command ended with a code that means failure
    └── TransferFailed           bytes arrived that are not the ones promised
"""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

# What the person types, with {folder} and {file}.
NOT_OURS = "ls -ld {folder} {file}   both must be yours, and their disk must take writes"
NO_ROOM = "df -h {folder}   and make room there"

_WAYS_OUT = {
    errno.EACCES: NOT_OURS,
    errno.EPERM: NOT_OURS,
    errno.EROFS: NOT_OURS,
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
}


class HomeportError(Exception):
    """Base of every error that is shown to the person; `exit_code` is jobctl's."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(HomeportError):
    """The job file or its data is wrong. `problems` lists every objection as 'file:line: message'."""

    exit_code = 2

    def __init__(self, problems: list[str], *, hint: str = "") -> None:
        super().__init__("\n".join(problems), hint=hint)
        self.problems = problems


class NoSuchJob(HomeportError):
    exit_code = 3


class DaemonUnreachable(HomeportError):
    exit_code = 4


class CredentialsRefused(HomeportError):
    exit_code = 5


class NothingFits(HomeportError):
    exit_code = 6


class Refused(HomeportError):
    """Legal in another state or with another argument; nothing was changed."""


class WorkstationUnfit(HomeportError):
    """This computer cannot hold or verify the model; mend it before anything is rented."""


class StoreError(HomeportError):
    """The database cannot be used."""


class Damaged(StoreError):
    """The file is no database any more."""


class LostRace(StoreError):
    """The row changed since it was read."""


class Fenced(StoreError):
    """A newer leader epoch exists, or another database; this process must stop writing and calling."""


class MarketError(HomeportError):
    """The market did not do what was asked. `status` and `body` are what it said, when it said anything."""

    definite = True  # True: the request had no effect

    def __init__(self, message: str, *, hint: str = "", status: int | None = None, body: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.body = body


class MarketUnreachable(MarketError):
    """Time-out, reset, 5xx or an unreadable reply: whether the request took effect is unknown."""

    definite = False


class RateLimited(MarketError):
    """429: nothing was done."""

    def __init__(self, message: str, *, retry_after_s: float, body: str = "") -> None:
        super().__init__(message, hint="nothing to do; asked again automatically", status=429, body=body)
        self.retry_after_s = retry_after_s


class OfferGone(MarketError):
    """The offer is taken or unknown: the next one may be tried."""


class NoCredit(MarketError):
    """The account cannot pay for it."""


class MarketRefused(MarketError):
    """Any other definite refusal."""


class BoxError(HomeportError):
    """The box did not do what was asked."""


class LinkLost(BoxError):
    """The connection died, or never came up; says nothing about the work on the box."""


class Overdue(LinkLost):
    """The command did not end in its time, and the connection was alive all the while: it may only be slow."""


class AccessDenied(BoxError):
    """The box does not accept our key (yet, or any more)."""


class HostKeyChanged(BoxError):
    """The box shows another host key than the pinned one, or failed the challenge."""


class RemoteFailed(BoxError):
    """A command on the box ended with `exit_code_remote`; `output` is the end of what it printed."""

    def __init__(self, message: str, *, exit_code_remote: int, output: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code_remote = exit_code_remote
        self.output = output


class TransferFailed(BoxError):
    """A file or chunk does not hash to what the manifest promised."""


def from_system(error: OSError, otherwise: str = "jobctl doctor") -> HomeportError:
    """`error` for a person: the file that was come upon, and what to type; `otherwise` where we know no better."""
    message = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return HomeportError(message, hint="df -h" if error.errno in (errno.ENOSPC, errno.EDQUOT) else otherwise)
    file = Path(os.fsdecode(error.filename))
    hint = _WAYS_OUT.get(error.errno or 0, otherwise).format(
        folder=shlex.quote(str(file.parent)), file=shlex.quote(str(file))
    )
    return HomeportError(f"{file}: {message}", hint=hint)
