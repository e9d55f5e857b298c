"""Vast.ai's JSON, in both directions. Pure: bodies to send, and replies read into our units (domain/market.py).

The market sends numbers as numbers, as strings or as null, and text with trailing blanks; money in dollars, times in
unix seconds, network speed in Mb/s, memory in MB, storage prices per GB and month of 720 hours. A figure that cannot be
read is None, unless nothing can be done without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

from daemon.domain.market import Account, Charge, CreateRequest, Instance, Offer, OfferQuery
from daemon.domain.money import STORAGE_MONTH_H, micros
from daemon.errors import CredentialsRefused, HomeportError, MarketRefused, MarketUnreachable, NoCredit, OfferGone

Json = dict[str, Any]

LARGEST = 1e12  # of any figure: seconds, bytes, dollars; a million times it still fits 63 bits
LATEST_S = 253_402_300_799  # the end of the year 9999
SEARCH_LIMIT = 64  # offers that come back at most, whatever is asked for
PAGE_LIMIT = 25  # instances on a page of the list, at most

# Words in an error's slug or message. The status beside them varies (a bad key has been seen as 401 and as 404).
BAD_KEY = ("auth_error", "invalid user key", "session expired")
OFFER_TAKEN = ("no_such_ask", "no longer available")
NO_MONEY = ("credit", "billing", "spend_rate")
UNKNOWN_INSTANCE = ("no_such_instance", "not_found")


T = TypeVar("T")


class Unreadable(ValueError):
    """A reply lacks what nothing can be done without."""


@dataclass(frozen=True)
class Answer:
    """One reply. `json` is the body when it is a JSON object, else None."""

    status: int
    body: str
    json: Json | None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The error slug and message, lower case; the market is not consistent about where it puts them."""
        found = (str((self.json or {}).get(key) or "") for key in ("error", "msg", "message", "detail"))
        return " ".join(found).lower()

    @property
    def new_contract(self) -> int | None:
        """The id of an instance that exists now. Failure bodies may carry one too."""
        named = _int((self.json or {}).get("new_contract"))
        return named if named and named > 0 else None  # 0 is how some say "none"


@dataclass(frozen=True)
class Page(Generic[T]):
    """Rows of a paged list; `next_token` None on the last page."""

    rows: list[T]
    next_token: str | None


def answer(status: int, body: str, headers: Mapping[str, str]) -> Answer:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):  # `json` None says so: neither yes nor no
        parsed = None
    return Answer(status, body, parsed if isinstance(parsed, dict) else None, headers)


# What is asked


def search_body(query: OfferQuery, floor: float | None = None) -> Json:
    """Body of an offer search, cheapest first. `floor`: the lowest total price in $/h, to page past the limit of 64."""
    body: Json = {
        "rentable": {"eq": True},
        "external": {"eq": False},
        "num_gpus": {"eq": query.num_gpus},
        "gpu_ram": {"gte": query.min_gpu_ram_mb},
        "disk_space": {"gte": query.disk_gb},
        "duration": {"gte": query.min_duration_s},
        "reliability": {"gte": query.min_reliability},
        "direct_port_count": {"gte": 1},
    }
    if query.verified:
        body["verified"] = {"eq": True}
    if query.gpu_names:
        body["gpu_name"] = {"in": list(query.gpu_names)}
    if query.min_cuda is not None:
        body["cuda_max_good"] = {"gte": query.min_cuda}
    price = {}
    if query.max_price_per_hour is not None:
        price["lte"] = query.max_price_per_hour / 1e6
    if floor is not None:
        price["gte"] = floor
    if price:
        body["dph_total"] = price
    # The price columns depend on the storage that the search names.
    return body | {
        "order": [["dph_total", "asc"]],
        "type": "on-demand",
        "limit": SEARCH_LIMIT,
        "allocated_storage": float(query.disk_gb),
    }


def create_body(request: CreateRequest) -> Json:
    """Body of a rental, on demand and never left behind stopped (`cancel_unavail`)."""
    return {
        "client_id": "me",
        "image": request.image,
        "env": request.env,
        "price": None,
        "disk": float(request.disk_gb),
        "label": request.label,
        "onstart": request.onstart,
        "runtype": "ssh_direc ssh_proxy",  # the market's spelling; both routes
        "cancel_unavail": True,
        "force": False,
        "python_utf8": False,
        "lang_utf8": False,
        "use_jupyter_lab": False,
    }


# What is answered


def failure(call: str, reply: Answer) -> HomeportError | None:
    """The error that this reply stands for, None for a plain success. A 429 is the caller's, who knows the limits."""
    words = reply.words.strip()
    said = f"{call}: the market answered {reply.status}" + (f" ({words})" if words else "")
    if reply.json is None or reply.status >= 500 or 300 <= reply.status < 400:
        return MarketUnreachable(f"{said}, which says neither yes nor no", status=reply.status, body=reply.body)
    if reply.status < 300 and reply.json.get("success") is not False:
        return None
    if reply.status == 401 or any(slug in words for slug in BAD_KEY):
        return CredentialsRefused(said, hint="jobctl doctor")
    if any(slug in words for slug in OFFER_TAKEN):
        return OfferGone(said, status=reply.status, body=reply.body)
    if any(slug in words for slug in NO_MONEY):
        hint = "top up at https://cloud.vast.ai/billing/, then resume"
        return NoCredit(said, hint=hint, status=reply.status, body=reply.body)
    if reply.status == 404 and not says_unknown_instance(reply):
        # An expired session, an empty collection, a retired path: a bare 404 is evidence of nothing.
        return MarketUnreachable(f"{said}, which may mean several things", status=reply.status, body=reply.body)
    return MarketRefused(said, status=reply.status, body=reply.body)


def says_unknown_instance(reply: Answer) -> bool:
    """Whether the market itself says, in words, that it knows no such contract."""
    said = {word.strip(".,:;()'\"") for word in reply.words.split()}  # whole words: user_not_found is none of these
    return reply.status == 404 and not said.isdisjoint(UNKNOWN_INSTANCE)


def says_attached_already(reply: Answer) -> bool:
    return reply.status == 400 and any(word in reply.words for word in ("duplicate", "already"))


def says_queued(reply: Answer) -> bool:
    """A start whose GPU is taken: it will run, and bill, whenever the GPU is free again."""
    return reply.status == 200 and "state change queued" in reply.words


def retry_after_s(reply: Answer, now_s: float) -> float | None:
    """How long a 429 asks to wait: header, body, or the reset time of the daily search quota. None: it does not say."""
    stated = _float(reply.headers.get("retry-after"))
    if stated is None:
        stated = _float((reply.json or {}).get("retry_after"))
    if stated is None and (reset := _float(reply.headers.get("x-ratelimit-reset"))) is not None:
        stated = reset - now_s
    return None if stated is None else max(0.0, stated)


def clock_ms(headers: Mapping[str, str]) -> int | None:
    """What the market's clock showed when it answered, UTC milliseconds. None: it does not say."""
    try:
        shown = parsedate_to_datetime(headers["date"])
        return None if shown.tzinfo is None else round(shown.timestamp() * 1000)
    except (KeyError, ValueError, OverflowError):  # which is what None says
        return None


def read_offers(reply: Json) -> list[Offer]:
    """The offers of a search. One without id or price cannot be rented and is left out; all of them are no answer."""
    raw = reply.get("offers")
    if not isinstance(raw, list):
        raise Unreadable("the search reply has no list of offers")
    found = [offer for item in raw if isinstance(item, dict) and (offer := read_offer(item)) is not None]
    if raw and not found:
        raise Unreadable(f"none of {len(raw)} offers has an id, a machine and a price")
    return found


def read_offer(raw: Json) -> Offer | None:
    offer_id, price, machine = _int(raw.get("id")), _price(raw.get("dph_total")), _int(raw.get("machine_id"))
    if offer_id is None or not price or machine is None:
        return None
    return Offer(
        id=offer_id,
        machine_id=machine,
        host_id=_int(raw.get("host_id")) or 0,
        gpu_name=_text(raw.get("gpu_name")),
        num_gpus=_int(raw.get("num_gpus")) or 0,
        gpu_ram_mb=_int(raw.get("gpu_ram")) or 0,
        price_per_hour=price,
        inet_down_per_gb=_price(raw.get("inet_down_cost")) or 0,
        inet_up_per_gb=_price(raw.get("inet_up_cost")) or 0,
        disk_space_gb=_float(raw.get("disk_space")) or 0.0,
        inet_up_mbps=_float(raw.get("inet_up")) or 0.0,
        reliability=_float(raw.get("reliability2")) or _float(raw.get("reliability")) or 0.0,
        verified=_text(raw.get("verification")) == "verified",
        rentable=bool(raw.get("rentable", True)) and not raw.get("rented", False),
        direct_port_count=_int(raw.get("direct_port_count")) or 0,
        cuda_max_good=_float(raw.get("cuda_max_good")),
        duration_s=_float(raw.get("duration")),
        end_date_ms=_ms(raw.get("end_date")),
        geolocation=_text(raw.get("geolocation")),
    )


def read_instance(raw: Any) -> Instance:
    """One row of the list, or the object of show. Raises Unreadable without an integer id."""
    if not isinstance(raw, dict) or type(raw.get("id")) is not int or _int(raw["id"]) is None:
        raise Unreadable("an instance without an integer id")
    label = raw.get("label")
    return Instance(
        id=raw["id"],
        label=_text(label) if label is not None else None,
        actual_status=_text(raw.get("actual_status")) or None,
        intended_status=_text(raw.get("intended_status")) or None,
        cur_state=_text(raw.get("cur_state")) or None,
        status_msg=_text(raw.get("status_msg")),
        machine_id=_int(raw.get("machine_id")),
        host_id=_int(raw.get("host_id")),
        gpu_name=_text(raw.get("gpu_name")),
        num_gpus=_int(raw.get("num_gpus")) or 0,
        price_per_hour=_price(raw.get("dph_total")),
        storage_per_hour=_storage_per_hour(raw),
        start_ms=_ms(raw.get("start_date")),
        end_ms=_ms(raw.get("end_date")),
        direct=_direct(raw),
        proxy=_proxy(raw),
        gpu_util=_float(raw.get("gpu_util")),
        env=_env(raw.get("extra_env")),
        raw=raw,
    )


def _env(pairs: Any) -> dict[str, str]:
    """The variables of a create, which come back as [[name, value], ...]; anything else in there is left out."""
    if not isinstance(pairs, list):
        return {}
    return {
        pair[0]: pair[1] for pair in pairs if isinstance(pair, list) and [type(part) for part in pair] == [str, str]
    }


def _storage_per_hour(raw: Json) -> int | None:
    if (total := _price(raw.get("storage_total_cost"))) is not None:
        return total
    month, disk = _float(raw.get("storage_cost")), _float(raw.get("disk_space"))
    return None if month is None or disk is None else _price(month * disk / STORAGE_MONTH_H)


def _direct(raw: Json) -> tuple[str, int] | None:
    """Address and port that the host maps to the container's sshd; `ports` is null unless it runs."""
    ports, address = raw.get("ports"), _text(raw.get("public_ipaddr"))
    mapped = ports.get("22/tcp") if isinstance(ports, dict) else None
    first = mapped[0] if isinstance(mapped, list) and mapped else None
    port = _int(first.get("HostPort")) if isinstance(first, dict) else None
    return (address, port) if address and port else None


def _proxy(raw: Json) -> tuple[str, int] | None:
    address, port = _text(raw.get("ssh_host")), _int(raw.get("ssh_port"))
    if not address or not port:
        return None
    jupyter = "jupyter" in _text(raw.get("image_runtype"))  # whose proxy sits on the stated port
    return address, port + jupyter


def read_instances(reply: Json) -> Page[Instance]:
    """A page of the list. Raises Unreadable, also for a single row without an id: it might be the one that bills."""
    raw = reply.get("instances")
    if not isinstance(raw, list):
        raise Unreadable("the list reply has no list of instances")
    return Page([read_instance(item) for item in raw], _next_token(reply))


def read_shown(reply: Json) -> Instance | None:
    """The object of show-one; None when the market says `null`. Raises Unreadable."""
    if "instances" not in reply:
        raise Unreadable("the show reply has no `instances`")
    shown = reply["instances"]
    if isinstance(shown, list) and len(shown) == 1:  # some replies wrap it
        shown = shown[0]
    return None if shown is None else read_instance(shown)


def read_account(reply: Json) -> Account:
    """Raises Unreadable when this is not an account: no id, or no credit."""
    user, credit = _int(reply.get("id")), _money(reply.get("credit"))
    if user is None or credit is None:
        raise Unreadable("the account reply has no id or no credit")
    return Account(user, credit)


def read_result_url(reply: Json) -> str:
    """Where a log will be delivered."""
    return _text(reply.get("result_url"))


def read_charges(reply: Json) -> Page[Charge]:
    """A page of charges. Raises Unreadable."""
    raw = reply.get("results")
    if not isinstance(raw, list) or not all(isinstance(row, dict) for row in raw):
        raise Unreadable("the charges reply has no list of results")
    return Page([_charge(row) for row in raw], _next_token(reply))


def _next_token(reply: Json) -> str | None:
    token = reply.get("next_token")
    if token is not None and not isinstance(token, str):
        raise Unreadable("the token of the next page is neither text nor null")
    return token or None


def _charge(raw: Json) -> Charge:
    amount = _money(raw.get("amount"))
    if amount is None:
        raise Unreadable("a charge without an amount")
    kind, _, number = _text(raw.get("source")).partition("-")
    metadata = raw.get("metadata")
    label = metadata.get("label") if isinstance(metadata, dict) else None
    return Charge(
        instance_id=_int(number) if kind == "instance" else None,
        label=_text(label) or None,
        amount=amount,
        start_ms=_ms(raw.get("start")),
        end_ms=_ms(raw.get("end")),
    )


# Single values


def _float(value: Any) -> float | None:
    """None for what is no number, and for one beyond all measure: no column of ours would hold it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):  # a figure that cannot be read is None, as the top says
        return None
    return number if abs(number) < LARGEST else None


def _int(value: Any) -> int | None:
    if type(value) is int:
        return value if abs(value) < 1 << 63 else None  # ids may be larger than a float holds exactly
    number = _float(value)
    return int(number) if number is not None else None


def _money(value: Any) -> int | None:
    number = _float(value)
    return None if number is None else micros(number)


def _price(value: Any) -> int | None:
    """Money that we pay: below zero there is none."""
    price = _money(value)
    return price if price is not None and price >= 0 else None


def _ms(value: Any) -> int | None:
    """None also for what stands for "unknown", such as -1, and for years that our calendars do not have."""
    seconds = _float(value)
    return round(seconds * 1000) if seconds is not None and 0 < seconds <= LATEST_S else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
