"""The daemon's front door over a real socket: who is let in, what the routes answer, how errors travel."""

from __future__ import annotations

import errno
import http.client
import json
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from scripted import Scripted, running
from stored import Stored

from daemon import platform, settings
from daemon.api.client import Client
from daemon.errors import (
    CredentialsRefused,
    DaemonUnreachable,
    HomeportError,
    NoSuchJob,
    NothingFits,
    Refused,
    SpecError,
)
from daemon.settings import Settings


@pytest.fixture
def config(tmp_path: Path) -> Settings:
    return settings.load({"HOMEPORT_HOME": str(tmp_path)})


@pytest.fixture
def stored(config: Settings) -> Stored:
    return Stored(config.paths.database)


@pytest.fixture
def commands() -> Scripted:
    return Scripted()


@pytest.fixture
def client(config: Settings, stored: Stored, commands: Scripted) -> Iterator[Client]:
    with running(config, commands):
        yield Client(config.paths)


def test_the_socket_is_private(client: Client) -> None:
    """Nobody but this user can open the socket."""
    assert stat.S_IMODE(client.paths.socket.stat().st_mode) == 0o600


def test_a_foreign_host_name_is_refused(client: Client) -> None:
    """A page that rebinds its own name to this computer gets 421 and nothing else."""
    connection = http.client.HTTPConnection("evil.example")
    connection.sock = platform.connect_unix(client.paths.socket, 5)

    connection.request("GET", "/v1/jobs")

    assert connection.getresponse().status == 421
    connection.close()


def test_where_a_unix_socket_cannot_be_loopback_wants_the_token(
    config: Settings, stored: Stored, commands: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without unix sockets the port is on loopback, the token in a private file, and a call without it gets 401."""
    monkeypatch.setattr(platform, "unix_socket_fits", lambda path: False)
    with running(config, commands):
        address = json.loads(config.paths.address.read_text())
        connection = http.client.HTTPConnection("127.0.0.1", address["port"])
        connection.request("GET", "/v1/jobs")

        assert connection.getresponse().status == 401
        assert Client(config.paths).jobs()["jobs"] == []
        assert os.name != "posix" or stat.S_IMODE(config.paths.address.stat().st_mode) == 0o600
        connection.close()


@pytest.mark.parametrize("address", ["[]", "{", '{"port": 99999, "token": "t"}', '{"port": "x", "token": "t"}', "{}"])
def test_a_file_that_names_no_port_is_no_daemon(
    config: Settings, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Whatever an ended daemon or another program left in it."""
    monkeypatch.setattr(platform, "unix_socket_fits", lambda path: False)
    config.paths.state.mkdir(parents=True)
    config.paths.address.write_text(address)

    with pytest.raises(DaemonUnreachable, match="the daemon is not running"):
        Client(config.paths).health()


@pytest.mark.parametrize("answer", ["[]", '{"detail": "Not Found"}', '{"error": "no"}', '{"error": {"code": 7}}'])
def test_another_program_on_the_port_is_no_daemon(
    config: Settings, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """The port of a daemon that ended is soon somebody else's, who may speak JSON too."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *args: object) -> None:
            """Nothing on standard error."""

    monkeypatch.setattr(platform, "unix_socket_fits", lambda path: False)
    config.paths.state.mkdir(parents=True)
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        config.paths.address.write_text(json.dumps({"port": server.server_port, "token": "t"}))

        with pytest.raises(DaemonUnreachable, match="another program answers"):
            Client(config.paths).health()


def test_a_socket_left_by_a_killed_daemon_is_replaced(config: Settings, stored: Stored, commands: Scripted) -> None:
    """A daemon that was killed leaves its socket behind; the next one listens all the same."""
    platform.listen_unix(config.paths.socket).close()
    assert config.paths.socket.exists()

    with pytest.raises(DaemonUnreachable):
        Client(config.paths).jobs()
    with running(config, commands):
        assert Client(config.paths).health()["version"] == "0.1.0"


def test_stopping_takes_the_socket_away(config: Settings, stored: Stored, commands: Scripted) -> None:
    """After a stop there is nothing to connect to."""
    with running(config, commands):
        pass

    assert not config.paths.socket.exists()


@pytest.mark.parametrize("unix", [True, False], ids=["socket", "loopback"])
def test_an_overtaken_daemon_leaves_the_door_of_the_newer_one(
    config: Settings, stored: Stored, commands: Scripted, monkeypatch: pytest.MonkeyPatch, unix: bool
) -> None:
    """One that ends after a newer one has begun takes only its own socket away: the newer one is still reached."""
    monkeypatch.setattr(platform, "unix_socket_fits", lambda path: unix)
    with ExitStack() as older:
        older.enter_context(running(config, commands))
        with running(config, commands):
            older.close()

            assert Client(config.paths).health()["version"] == "0.1.0"
        assert not config.paths.socket.exists() and not config.paths.address.exists()


def test_readings_come_from_the_database(client: Client, stored: Stored) -> None:
    """Jobs, one job, events, metrics, log and leases are what the tables say."""
    stored.job("k7f3qd", state="SFT")
    stored.lease("k7f3qd")
    stored.steps("k7f3qd", "SFT", 1, 12, 520)
    stored.insert("events", job_id="k7f3qd", at=0, kind="job.moved", by="daemon", body='{"from":"QUEUED","to":"SFT"}')
    log = client.paths.job_folders / "k7f3qd" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("step 12\n")

    assert [job["id"] for job in client.jobs()["jobs"]] == ["k7f3qd"]
    steps = {"stage": "SFT", "done": 12, "total": 520, "unit": "STEPS", "per_s": None, "resent": 0}
    assert client.job("k7f")["job"]["progress"] == steps
    assert [event["kind"] for event in client.events("k7f", 0)["events"]] == ["job.moved"]
    assert [step["step"] for step in client.metrics("k7f", 10)["metrics"]] == [11, 12]
    assert client.log("k7f", 5) == {"schema": "homeport.log/1", "job": "k7f3qd", "text": "12\n", "offset": 8}
    assert [lease["instance"] for lease in client.leases()["leases"]] == [29481133]


def test_verbs_reach_the_commands_with_the_whole_id(client: Client, stored: Stored, commands: Scripted) -> None:
    """A prefix is resolved once, at the door: the commands see ids."""
    stored.job("k7f3qd")

    client.hold("k7f", "ann")
    client.resume("name-k7f3qd", "ann")
    client.retry("@last", "ann", "GGUF")
    client.accept("k7f", "ann")
    client.accept("k7f", "ann", "L4", "name-k7f3qd")
    client.cancel("k7f3qd", "ann", discard=True, confirm=29481133)
    client.abandon("k7f", "ann", 29481133)
    client.write_off(29481133, "ann", 29481133)
    client.adopt(29481133, "version: 1", "job.yaml", "/jobs", "ann")

    assert commands.calls == [
        ("hold", "k7f3qd", "ann"),
        ("resume", "k7f3qd", "ann"),
        ("retry", "k7f3qd", "ann", "GGUF"),
        ("accept", "k7f3qd", "ann", None, None),
        ("accept", "k7f3qd", "ann", "L4", "name-k7f3qd"),
        ("cancel", "k7f3qd", "ann", True, 29481133),
        ("abandon", "k7f3qd", "ann", 29481133),
        ("write_off", 29481133, "ann", 29481133),
        ("adopt", 29481133, "version: 1", "job.yaml", "/jobs", "ann"),
    ]


@pytest.mark.parametrize(
    "error",
    [
        SpecError(["job.yaml:3: lr: not a number", "job.yaml:9: machine: unknown key"], hint="jobctl plan job.yaml"),
        CredentialsRefused("the market refuses the key", hint="jobctl doctor"),
        NothingFits("no offer fits", hint="jobctl offers --why"),
        Refused("a destroy is unresolved"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_it_was_raised(client: Client, commands: Scripted, error: HomeportError) -> None:
    """Class, message, hint, problems and exit code survive the socket."""
    commands.answers["plan"] = error

    with pytest.raises(type(error)) as caught:
        client.plan("", "job.yaml", "/")

    assert caught.value.args == error.args
    assert (caught.value.hint, caught.value.exit_code) == (error.hint, error.exit_code)


def test_an_unknown_job_is_404(client: Client) -> None:
    """A reference that means nothing is NoSuchJob, whatever the verb."""
    with pytest.raises(NoSuchJob):
        client.job("zzz")
    with pytest.raises(NoSuchJob):
        client.hold("zzz", "ann")


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b'{"by": 3}', b"{}", b"x" * (5 << 20), b"[" * 100_000],
    ids=["list", "cut", "number", "empty", "huge", "deep"],
)
def test_a_malformed_request_is_refused(client: Client, stored: Stored, commands: Scripted, body: bytes) -> None:
    """Bytes that are not the expected object change nothing and are answered with an error."""
    stored.job("k7f3qd")
    connection = http.client.HTTPConnection("localhost")
    connection.sock = platform.connect_unix(client.paths.socket, 5)

    connection.request("POST", "/v1/jobs/k7f3qd/hold", body)

    assert connection.getresponse().status in (409, 422)
    assert commands.calls == []
    connection.close()


def test_a_full_disk_is_named(client: Client, commands: Scripted) -> None:
    """It is no fault of homeport: who asked is told of the file, not of a trace."""
    commands.answers["plan"] = OSError(errno.ENOSPC, "No space left on device", "/state/data/x.jsonl")

    with pytest.raises(Refused) as caught:
        client.plan("", "job.yaml", "/")

    assert caught.value.message == "/state/data/x.jsonl: No space left on device" and caught.value.hint


def test_an_unexpected_error_is_named_not_shown(client: Client, commands: Scripted) -> None:
    """A bug answers 500 with its class; its text, which may hold anything, stays in the daemon's log."""
    commands.answers["doctor"] = RuntimeError("canary-secret")

    with pytest.raises(Refused) as caught:
        client.doctor()

    assert "RuntimeError" in caught.value.message
    assert "canary" not in caught.value.message


def test_the_port_of_another_daemon_is_no_daemon_of_ours(
    config: Settings, stored: Stored, commands: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It wants another token than the one that our ended daemon left: the database is read then."""
    monkeypatch.setattr(platform, "unix_socket_fits", lambda path: False)
    with running(config, commands):
        address = json.loads(config.paths.address.read_text())
        config.paths.address.write_text(json.dumps(address | {"token": "another"}))

        with pytest.raises(DaemonUnreachable) as refused:
            Client(config.paths).jobs()

    assert refused.value.hint
