"""What travels between jobctl and jobd: the port behind the routes, and errors as JSON.

Views of jobs, leases and events are those of store/shapes.py; this module adds what only the wire needs.
"""

from __future__ import annotations

from typing import Any, Protocol, TypedDict

from daemon import errors
from daemon.errors import HomeportError, SpecError
from daemon.store.shapes import CoverageView


class Commands(Protocol):
    """What the routes ask of the daemon (control/commands.py). Every method raises HomeportError subclasses.

    The dictionaries have the shapes below, as TypedDicts: Submitted, Plan, Offers, Answer, Terms, Checks.
    """

    async def submit(self, text: str, source: str, folder: str, request_id: str) -> dict[str, Any]:
        """Store the job. The same `request_id` again returns the first job with `created` false. -> Submitted"""
        ...

    async def plan(self, text: str, source: str, folder: str) -> dict[str, Any]:
        """What `submit` would do, spending nothing. -> Plan"""
        ...

    async def offers(self, filters: dict[str, Any]) -> dict[str, Any]:
        """`filters`: gpu (list of names), count, max_price (decimal string per hour); absent means any. -> Offers"""
        ...

    async def hold(self, job: str, by: str) -> dict[str, Any]:
        """-> Answer, like the other verbs that change a job."""
        ...

    async def resume(self, job: str, by: str) -> dict[str, Any]: ...

    async def retry(self, job: str, by: str, stage: str | None) -> dict[str, Any]: ...

    async def accept(self, job: str, by: str, level: str | None = None, confirm: str | None = None) -> dict[str, Any]:
        """`level`: L4 or L3, where what is above cannot run here; it wants the job's name as `confirm`."""
        ...

    async def cancel(self, job: str, by: str, discard: bool, confirm: int | None = None) -> dict[str, Any]:
        """`discard` gives up what is not verified here, and wants the instance id as `abandon` does."""
        ...

    async def abandon_terms(self, job: str) -> dict[str, Any]:
        """-> Terms"""
        ...

    async def abandon(self, job: str, by: str, confirm: int | None) -> dict[str, Any]: ...

    async def write_off(self, instance: int, by: str, confirm: int | None) -> dict[str, Any]:
        """-> Answer"""
        ...

    async def adopt(self, instance: int, text: str, source: str, folder: str, by: str) -> dict[str, Any]:
        """Take back a machine whose job the database does not know; `text` is its job file. -> Answer"""
        ...

    async def pull(self, job: str, checkpoint: str, to: str) -> dict[str, Any]:
        """Bring a checkpoint (`latest`, or a step) into the folder `to`, in the background. -> Started"""
        ...

    async def fetch(self, instance: int, pattern: str, to: str, host_key: str | None) -> dict[str, Any]:
        """Bring files of a machine rented by hand into `to`; `host_key` is its compared fingerprint.

        -> StartedFetch
        """
        ...

    async def transfer(self, number: int) -> dict[str, Any]:
        """How far one that was started has come. -> Transfer"""
        ...

    async def doctor(self) -> dict[str, Any]:
        """What only the daemon can know: the market, the account, orphans. -> Checks"""
        ...


class Started(TypedDict):
    transfer: int
    to: str


class StartedFetch(Started):
    job: str | None  # whose machine it is, as far as we know


class TransferFile(TypedDict, total=False):
    path: str
    size: int
    sha256: str
    quant: str  # of a GGUF whose name tells it, with the plain floor of a 7B or 8B
    floor: int
    above_floor: bool


class Transfer(TypedDict):
    state: str  # RUNNING, DONE, FAILED
    to: str
    done: int  # bytes
    total: int  # 0 until it is known
    resent: int
    per_s: int
    eta_s: int | None
    seconds: float
    files: list[TransferFile]
    problem: str | None
    hint: str | None


class OfferView(TypedDict):
    offer: int
    gpu: str  # "8x H100 SXM"
    price_per_hour: str  # all GPUs and the disk
    reliability: float
    location: str
    reason: str  # why it is not taken; empty for one that may be


class ChoiceView(TypedDict):
    """So many GPUs, used so: what the whole job would take at the price of the best offer's GPUs."""

    gpus: int
    placement: str
    training_hours: float  # of `hours`
    hours: float
    cost: str
    measured: bool  # False: the speed of so many GPUs is extrapolated
    asked: bool  # what the job file says
    marks: list[str]  # cheapest, fastest, knee; or the limits that it exceeds


class WayView(TypedDict):
    """One way home of the finished files, with what it takes from the end of the GGUF stage to the proven model."""

    way: str  # download or rebuild
    seconds: float
    cost: str
    bytes: int  # fetched then
    why: str | None  # of the way that the job file comes to; None for the other


class Plan(TypedDict):
    name: str
    model: str
    rows: dict[str, int]  # SFT, DPO, EVAL
    steps: dict[str, int]  # SFT, DPO: derived, never assumed
    coverage: list[CoverageView]
    limits: dict[str, str]  # as the spec has them, for a person
    hours: float | None  # None where no offer fits
    cost: str | None
    reserve: str | None  # kept back for bringing the model home
    download_bytes: int
    deliver: list[WayView]
    disk_gb: int
    currency: str
    offers: list[OfferView]  # best first
    rejected: list[OfferView]
    choices: list[ChoiceView]  # empty where no offer fits
    notes: list[str]  # what is assumed, what is not checked
    problems: list[str]  # of this workstation: submit would refuse


class Submitted(TypedDict):
    job: str
    name: str
    created: bool
    plan: Plan | None


class Offers(TypedDict):
    offers: list[OfferView]
    rejected: list[OfferView]
    currency: str


class Answer(TypedDict):
    job: str | None
    message: str  # what happens now, for a person


class Terms(TypedDict):
    """What giving a job up costs. `instance` has to be typed; None: no machine is rented."""

    job: str
    name: str
    instance: int | None
    lost: list[str]


class Check(TypedDict):
    """One line of `jobctl doctor`."""

    name: str
    status: str  # PASS, WARN, FAIL or SKIP
    detail: str
    fix: str  # a command, or empty


class Checks(TypedDict):
    checks: list[Check]


class ErrorBody(TypedDict):
    message: str
    hint: str
    exit_code: int
    problems: list[str]


# Exit code -> class: the same error is raised on both sides of the socket.
_BY_CODE: dict[int, type[HomeportError]] = {
    kind.exit_code: kind
    for kind in (errors.NoSuchJob, errors.DaemonUnreachable, errors.CredentialsRefused, errors.NothingFits)
}
# Exit code -> HTTP status; any other code is a 409: legal in another state.
_STATUS = {2: 422, 3: 404, 5: 401, 6: 409}


def error_body(error: HomeportError) -> ErrorBody:
    problems = error.problems if isinstance(error, SpecError) else []
    return ErrorBody(message=error.message, hint=error.hint, exit_code=error.exit_code, problems=problems)


def http_status(error: HomeportError) -> int:
    return _STATUS.get(error.exit_code, 409)


def error_from(body: ErrorBody) -> HomeportError:
    """The error that `body` describes, to be raised on jobctl's side."""
    if body["problems"]:
        return SpecError(body["problems"], hint=body["hint"])
    return _BY_CODE.get(body["exit_code"], errors.Refused)(body["message"], hint=body["hint"])
