"""What travels between jobctl and jobd: the port behind the routes, and errors as JSON.

Views of jobs, leases and events are those of store/readonly.py; this module adds what only the wire needs.
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

    async def accept(self, job: str, by: str) -> dict[str, Any]: ...

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

    async def doctor(self) -> dict[str, Any]:
        """What only the daemon can know: the market, the account, orphans. -> Checks"""
        ...


class OfferView(TypedDict):
    offer: int
    gpu: str  # "8x H100 SXM"
    price_per_hour: str  # all GPUs and the disk
    reliability: float
    location: str
    reason: str  # why it is not taken; empty for one that may be


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
    disk_gb: int
    currency: str
    offers: list[OfferView]  # best first
    rejected: list[OfferView]
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
    kind.exit_code: kind for kind in (errors.NoSuchJob, errors.CredentialsRefused, errors.NothingFits)
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
