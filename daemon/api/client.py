"""jobctl's side of the socket: one method per route. Standard library only: each start of jobctl pays for imports."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlencode

from daemon import platform
from daemon.api.messages import (
    Answer,
    Checks,
    Offers,
    Plan,
    Started,
    StartedFetch,
    Submitted,
    Terms,
    Transfer,
    error_from,
)
from daemon.errors import DaemonUnreachable, NoSuchJob
from daemon.settings import Paths
from daemon.store.shapes import Events, JobPage, Jobs, Leases, Log, Metrics

READ_S = 10.0  # a reading is milliseconds; more means that the daemon hangs
ASK_S = 180.0  # a plan or a submit asks the market, which may make us wait for our turn
NOT_OURS = "another program answers where it listened"  # a port that an ended daemon left in its file

Json = dict[str, Any]


@dataclass(frozen=True)
class Client:
    """The readings are those of store.readonly.ReadModel, asked of the daemon.

    Raises DaemonUnreachable when nobody answers, else the error that the daemon raised.
    """

    paths: Paths

    def health(self) -> Json:
        return self._get("/v1/health")

    def jobs(self) -> Jobs:
        return cast(Jobs, self._get("/v1/jobs"))

    def job(self, ref: str) -> JobPage:
        return cast(JobPage, self._get(_job(ref)))

    def events(self, ref: str, after: int) -> Events:
        return cast(Events, self._get(_job(ref, "events"), after=after))

    def metrics(self, ref: str, after: int) -> Metrics:
        return cast(Metrics, self._get(_job(ref, "metrics"), after=after))

    def log(self, ref: str, offset: int) -> Log:
        return cast(Log, self._get(_job(ref, "log"), offset=offset))

    def leases(self) -> Leases:
        return cast(Leases, self._get("/v1/leases"))

    def submit(self, text: str, source: str, folder: str, request_id: str) -> Submitted:
        return cast(Submitted, self._post("/v1/jobs", text=text, source=source, folder=folder, request_id=request_id))

    def plan(self, text: str, source: str, folder: str) -> Plan:
        return cast(Plan, self._post("/v1/plan", text=text, source=source, folder=folder))

    def offers(self, **filters: Any) -> Offers:
        return cast(Offers, self._post("/v1/offers", **filters))

    def doctor(self) -> Checks:
        return cast(Checks, self._post("/v1/doctor"))

    def hold(self, ref: str, by: str) -> Answer:
        return cast(Answer, self._post(_job(ref, "hold"), by=by))

    def resume(self, ref: str, by: str) -> Answer:
        return cast(Answer, self._post(_job(ref, "resume"), by=by))

    def retry(self, ref: str, by: str, stage: str | None) -> Answer:
        return cast(Answer, self._post(_job(ref, "retry"), by=by, stage=stage))

    def accept(self, ref: str, by: str, level: str | None = None, confirm: str | None = None) -> Answer:
        return cast(Answer, self._post(_job(ref, "accept"), by=by, level=level, confirm=confirm))

    def cancel(self, ref: str, by: str, discard: bool, confirm: int | None) -> Answer:
        return cast(Answer, self._post(_job(ref, "cancel"), by=by, discard=discard, confirm=confirm))

    def abandon_terms(self, ref: str) -> Terms:
        return cast(Terms, self._get(_job(ref, "abandon")))

    def abandon(self, ref: str, by: str, confirm: int | None) -> Answer:
        return cast(Answer, self._post(_job(ref, "abandon"), by=by, confirm=confirm))

    def write_off(self, instance: int, by: str, confirm: int) -> Answer:
        return cast(Answer, self._post(f"/v1/leases/{instance}/write-off", by=by, confirm=confirm))

    def adopt(self, instance: int, text: str, source: str, folder: str, by: str) -> Answer:
        body = {"text": text, "source": source, "folder": folder, "by": by}
        return cast(Answer, self._post(f"/v1/leases/{instance}/adopt", **body))

    def pull(self, ref: str, by: str, checkpoint: str, to: str) -> Started:
        return cast(Started, self._post(_job(ref, "pull"), by=by, checkpoint=checkpoint, to=to))

    def fetch(self, instance: int, pattern: str, to: str, host_key: str | None) -> StartedFetch:
        body = {"pattern": pattern, "to": to, "host_key": host_key}
        return cast(StartedFetch, self._post(f"/v1/instances/{instance}/fetch", **body))

    def transfer(self, number: int) -> Transfer:
        return cast(Transfer, self._get(f"/v1/transfers/{number}"))

    def _get(self, path: str, **query: int) -> Json:
        return self._call("GET", f"{path}?{urlencode(query)}" if query else path, None, READ_S)

    def _post(self, path: str, **body: Any) -> Json:
        return self._call("POST", path, json.dumps(body), ASK_S)

    def _call(self, method: str, path: str, body: str | None, timeout_s: float) -> Json:
        connection, token = _connection(self.paths, timeout_s)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise DaemonUnreachable("the daemon is not running", hint="jobctl up") from error
        except TimeoutError as error:
            raise DaemonUnreachable(
                f"the daemon does not answer within {timeout_s:g} s", hint="jobctl doctor"
            ) from error
        except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:  # the last: of no port
            raise _unreachable(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if not isinstance(answer, dict):
            raise _unreachable(NOT_OURS)
        if response.status < 400:
            return answer
        try:
            told = error_from(answer["error"])
        except (KeyError, TypeError) as error:
            raise _unreachable(NOT_OURS) from error
        raise told


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = platform.connect_unix(self._path, self._timeout_s)


def _connection(paths: Paths, timeout_s: float) -> tuple[http.client.HTTPConnection, str | None]:
    """The way to the daemon and the token it wants: the same choice as in server.listen. Raises DaemonUnreachable."""
    if platform.unix_socket_fits(paths.socket):
        return _UnixConnection(paths.socket, timeout_s), None
    try:
        address = json.loads(paths.address.read_text(encoding="utf-8"))
        return http.client.HTTPConnection("127.0.0.1", int(address["port"]), timeout=timeout_s), address["token"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreachable(f"{paths.address}: {type(error).__name__}: {error}") from error


def _unreachable(why: str) -> DaemonUnreachable:
    return DaemonUnreachable(f"the daemon is not running ({why})", hint="jobctl up")


def _job(ref: str, *parts: str) -> str:
    """Raises NoSuchJob for what no job can be called: no route has it, and its 404 would be no answer of ours."""
    if not ref or "/" in ref:
        raise NoSuchJob(f"no job {ref!r}", hint="jobctl status")
    return "/".join(("/v1/jobs", quote(ref, safe="@", errors="replace"), *parts))
