"""What can go wrong, as a table: every fault that may be ordered, when it acts, and what it imitates.

`docs/sandbox.md` is printed from this table, and `GET /sandbox/faults` serves the same words. A fault hurts whoever
trusts the reply, the listing or the line; the sandbox's own ledger stays true.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Moment(StrEnum):
    """When a fault acts."""

    BEFORE = "before"  # instead of the request's effect
    DURING = "during"  # the verb or the listing itself goes another way
    REPLY = "reply"  # the effect stands, the reply suffers
    HOST = "host"  # to the instance `instance`, at once or after the matching request
    BOX = "box"  # likewise, and carried out by the instance's sshd, which reports when it strikes
    MARKET = "market"  # to the account or the whole market, at once or after the matching request


UNASKED = frozenset({Moment.HOST, Moment.BOX, Moment.MARKET})  # these strike at once when they match no request


@dataclass(frozen=True)
class Requests:
    """Requests by method and shell pattern of the path."""

    method: str = "*"
    path: str = "*"


ANY = Requests()
CREATE = Requests("PUT", "/api/v0/asks/*")
DESTROY = Requests("DELETE", "/api/v0/instances/*")
LIST = Requests("GET", "/api/v1/instances")
ATTACH = Requests("POST", "/api/v0/instances/*/ssh")


@dataclass(frozen=True)
class Fault:
    """A kind of fault: what it does, what it imitates, its parameters with their defaults, the requests it meets."""

    moment: Moment
    does: str
    imitates: str
    params: dict[str, Any] = field(default_factory=dict)
    meets: Requests = ANY

    @property
    def described(self) -> dict[str, Any]:
        """The words of the sandbox's page."""
        return {"moment": self.moment, "does": self.does, "imitates": self.imitates, "params": self.params}


WHOSE = {"instance": None}  # the one named, else that of the matching request, else every living one
FOR_5_S = {**WHOSE, "seconds": 5.0}
OCI_ERROR = (
    "Error response from daemon: failed to create task for container: OCI runtime create failed: could not apply "
    "required modification to OCI specification: error modifying OCI spec: failed to inject CDI devices"
)

CATALOGUE: dict[str, Fault] = {
    # Requests and replies
    "lost_before_effect": Fault(
        Moment.BEFORE, "the connection drops; nothing was done", "a network that fails on the way there",
    ),
    "http_error": Fault(
        Moment.BEFORE, "any status, body and headers instead; nothing was done", "a service that is down, a proxy",
        {"status": 503, "body": "", "headers": {}},
    ),
    "html_page": Fault(
        Moment.BEFORE, "a gateway's HTML page instead; nothing was done", "the proxy before the market",
        {"status": 502},
    ),
    "bad_key": Fault(
        Moment.BEFORE, "the key is called unknown: auth_error; nothing was done", "a revoked key, seen as 404 and 401",
        {"status": 404},
    ),
    "refusal": Fault(
        Moment.BEFORE, "the market's own words for `why` instead (below); nothing was done", "every documented refusal",
        {"why": "too_frequent"},
    ),
    "reply_lost": Fault(
        Moment.REPLY, "effect, then (after `hang_s`) the connection drops without a reply", "a lost create or destroy",
        {"hang_s": 0.0},
    ),
    "effect_then_error": Fault(
        Moment.REPLY, "effect, then an error instead of the reply", "a gateway that gave up waiting",
        {"status": 502, "body": ""},
    ),
    "error_with_contract": Fault(
        Moment.REPLY, "effect, then an error whose body carries `new_contract`", "a create that failed half-way",
        {"status": 400}, CREATE,
    ),
    "slow_reply": Fault(
        Moment.REPLY, "effect, then so many seconds until the reply", "creates that take longer than the client waits",
        {"seconds": 2.0},
    ),
    "unreachable": Fault(
        Moment.MARKET, "nobody listens for so many seconds: every connection is refused, open ones drop",
        "market or name server down", {"seconds": 5.0},
    ),
    # Listings
    "listing": Fault(
        Moment.REPLY, "a listing of another `shape` (below)", "listings that lie, break or change their form",
        {"shape": "truncated"}, LIST,
    ),
    "list_lag": Fault(
        Moment.DURING, "listings leave out instances younger than so many seconds", "reads that lag behind creates",
        {"seconds": 5.0}, LIST,
    ),
    "late_listing": Fault(
        Moment.DURING, "the instance created is in no reply for so many seconds", "reads that lag behind creates",
        {"seconds": 5.0}, CREATE,
    ),
    "vanish": Fault(
        Moment.HOST, "no reply shows the instance for so many seconds; it lives and bills", "a row that is missing",
        FOR_5_S,
    ),
    # Renting
    "double_accept": Fault(
        Moment.DURING, "a taken offer is rented once more", "two requests for one offer in a race", {}, CREATE,
    ),
    "cannot_start": Fault(
        Moment.DURING, "410 with cancel_unavail; without it a stopped instance that bills its disk",
        "an offer that is listed and cannot start", {}, CREATE,
    ),
    "offers_relisted": Fault(
        Moment.MARKET, "every offer gets another id; the old ones are unknown", "offer ids are volatile",
    ),
    # Returning
    "destroy_lingers": Fault(
        Moment.DURING, "destroyed, and listed for so many seconds more", "mutators act after they have answered",
        {"seconds": 5.0}, DESTROY,
    ),
    "destroy_ignored": Fault(
        Moment.DURING, "200, and nothing happens: it stays and bills", "an accepted destroy that never came true",
        {}, DESTROY,
    ),
    "destroy_undone": Fault(
        Moment.DURING, "200, gone from every reply; after so many seconds it is back, and has billed all the time",
        "a destroy that came to nothing after it was seen to work", {"seconds": 5.0}, DESTROY,
    ),
    "console_destroy": Fault(
        Moment.HOST, "somebody destroys the instance in the web console", "a shared account", WHOSE,
    ),
    # What a host goes through
    "stuck_loading": Fault(
        Moment.HOST, "it stays `loading` for so many seconds more", "an image pull that takes hours",
        {**WHOSE, "seconds": 3600.0},
    ),
    "docker_error": Fault(
        Moment.HOST, "it never runs: `created`, cur_state stopped, Docker's words in status_msg", "a broken host",
        {**WHOSE, "status_msg": OCI_ERROR},
    ),
    "exits": Fault(
        Moment.HOST, "`exited` while intended running: its processes are dead, its disk stays, until it is started",
        "a container whose main process ended", WHOSE,
    ),
    "reboot": Fault(
        Moment.HOST, "the container restarts: its processes die, its disk stays, its ports change",
        "a host that restarts", WHOSE,
    ),
    "offline": Fault(
        Moment.HOST, "the host is disconnected for so many seconds; the work goes on", "a host without network",
        FOR_5_S,
    ),
    "status": Fault(
        Moment.HOST, "the market reports this status for so many seconds, whatever is true",
        "lagging and unheard-of statuses: exited during a live login, unknown", {**FOR_5_S, "status": "unknown"},
    ),
    "outbid": Fault(
        Moment.HOST, "stopped without our request for so many seconds or until the bid is raised; then it resumes",
        "an interruptible rental that loses its GPU", FOR_5_S,
    ),
    "end_date": Fault(
        Moment.HOST, "the contract ends in so many seconds: stopped, no start, deleted `grace_s` (scaled) later",
        "the end of a rental", {**FOR_5_S, "grace_s": 172_800.0},
    ),
    "credit": Fault(
        Moment.MARKET, "so many dollars are left; at zero all is stopped, and deleted `buffer_s` (scaled) later",
        "an empty account without a card; a top-up", {"left": 0.0, "buffer_s": 86_400.0},
    ),
    # Ways into a box
    "key_lost": Fault(
        Moment.DURING, "a key is accepted and never reaches the box; attaching it again works",
        "an attach that races the boot", {}, ATTACH,
    ),
    "late_key": Fault(
        Moment.DURING, "a key reaches the box so many seconds later", "an attach that takes minutes",
        {"seconds": 5.0}, ATTACH,
    ),
    "keys_wiped": Fault(
        Moment.HOST, "authorized_keys is emptied: no new login until a key is attached again; open ones go on",
        "the market rewriting authorized_keys", WHOSE,
    ),
    "host_key_changes": Fault(
        Moment.HOST, "sshd drops its connections and comes back with another host key",
        "a recycled proxy port, another container, somebody in between", WHOSE,
    ),
    "endpoint_moves": Fault(
        Moment.HOST, "sshd drops its connections and comes back on other ports and this address",
        "hosts with dynamic addresses", {**WHOSE, "address": "127.0.0.2"},
    ),
    "ssh_refused": Fault(
        Moment.HOST, "connections to sshd are refused for so many seconds", "`running` long before sshd listens",
        FOR_5_S,
    ),
    "ssh_cut": Fault(
        Moment.BOX, "all SSH connections drop once so many more bytes have passed", "a connection that breaks",
        {**WHOSE, "after_bytes": 0},
    ),
    "ssh_mute": Fault(
        Moment.BOX, "connections are accepted, no byte passes in either direction for so many seconds; `door`: direct, "
        "proxy or both", "half-open connections, a dead proxy", {**FOR_5_S, "door": "both"},
    ),
    "ssh_slow": Fault(
        Moment.BOX, "at most `bytes_per_s` each way and `delay_s` more a piece, for so many seconds; `door` as above",
        "a slow proxy, a bad line", {**FOR_5_S, "door": "both", "bytes_per_s": 100_000.0, "delay_s": 0.0},
    ),
    "tmux": Fault(
        Moment.BOX, "`ssh host command` is swallowed until ~/.no_auto_tmux exists, for so many seconds",
        "logins that land in tmux", {**WHOSE, "seconds": 3600.0},
    ),
    "byte_flipped": Fault(
        Moment.BOX, "one bit is wrong in each of the next `reads` SFTP reads of files of this name",
        "bad memory, a bad disk", {**WHOSE, "name": "*.gguf", "reads": 1},
    ),
}  # fmt: skip
