"""`jobctl demo --chaos`: four faults ordered from the local market while the demo runs, and whether each was survived.

The daemon is told nothing. That a fault has struck is the market's word; that it was survived is an event of the
daemon's that comes after, and in the end the market's ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from daemon.errors import HomeportError
from daemon.store.shapes import Event


@dataclass(frozen=True, eq=False)
class Trial:
    """One fault and the requests it `meets`.

    Ordered after the event `after` ('' at once), survived with the first event `ends` once it has struck.
    """

    fault: str
    params: dict[str, Any]
    meets: dict[str, str] | None
    after: str
    strikes: str
    ends: str
    survived: str


CREATE = {"method": "PUT", "path": "/api/v0/asks/*"}
DESTROY = {"method": "DELETE", "path": "/api/v0/instances/*"}
TRIALS = (
    Trial("reply_lost", {}, CREATE, "", "the reply to the create is lost: nobody says that a machine was rented",
          "lease.adopted", "found by its label in the market's list; nothing was rented twice"),
    Trial("ssh_cut", {}, None, "job.moved SFT", "every SSH connection is cut while the machine trains",
          "box.reconnected", "logged in again; the training never noticed"),
    Trial("byte_flipped", {}, None, "box.proven", "one bit of the model is wrong on its way home",
          "job.moved DOWNLOADED", "its chunk hashed wrong and was fetched again"),
    Trial("destroy_lingers", {"seconds": 3.0}, DESTROY, "", "the destroy is accepted, and the machine stays listed",
          "lease.state GONE", "not believed before the list said so, twice"),
)  # fmt: skip


class Chaos:
    """The trials of one demo, against the market that it announced."""

    def __init__(self, market: dict[str, Any]) -> None:
        self._http = httpx.Client(
            base_url=market["url"], headers={"Authorization": f"Bearer {market['api_key']}"}, trust_env=False
        )
        self._orders: dict[Trial, int] = {}
        self._struck: set[Trial] = set()
        self._survived: set[Trial] = set()
        self._order_after("")

    def look(self, events: Sequence[Event]) -> Iterator[str]:
        """Take the job's new events; the lines about what has struck and what was survived."""
        happened = [_named(event["kind"], event["body"]) for event in events]
        for each in happened:
            self._order_after(each)
        hits = {order["id"]: order["hits"] for order in self._ask("GET", "/sandbox/faults")["faults"]}
        for trial, order in self._orders.items():
            if trial not in self._struck and hits[order]:
                self._struck.add(trial)
                yield f"FAULT     {trial.strikes}"
            if trial in self._struck - self._survived and trial.ends in happened:
                self._survived.add(trial)
                yield f"SURVIVED  {trial.survived}"

    def verdict(self) -> tuple[bool, str]:
        """Whether all went well, and the line that says how it ended."""
        instances = self._ask("GET", "/sandbox/ledger")["instances"]
        destroyed = sum(instance["destroyed_at"] is not None for instance in instances)
        machines = "1 machine" if len(instances) == 1 else f"{len(instances)} machines"
        fates = "destroyed" if destroyed == len(instances) else f"{destroyed} destroyed"
        line = (
            f"{len(self._orders)} faults ordered, {len(self._survived)} survived;"
            f" the market's ledger: {machines}, {fates}"
        )
        return len(self._survived) == len(TRIALS) and len(instances) == destroyed == 1, line

    def close(self) -> None:
        self._http.close()

    def _order_after(self, happened: str) -> None:
        for trial in TRIALS:
            if trial.after == happened and trial not in self._orders:
                order = {"fault": trial.fault, "params": trial.params, "match": trial.meets}
                self._orders[trial] = self._ask("POST", "/sandbox/faults", order)["id"]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            reply = self._http.request(method, path, json=body)
            reply.raise_for_status()
        except httpx.HTTPError as error:
            raise HomeportError(f"the local market does not answer: {error}", hint="jobctl demo --chaos") from error
        return reply.json()


def _named(kind: str, body: dict[str, Any]) -> str:
    """An event as the trials name it: a move with where it leads."""
    match kind:
        case "job.moved":
            return f"{kind} {body['to']}"
        case "lease.state":
            return f"{kind} {body['state']}"
    return kind
