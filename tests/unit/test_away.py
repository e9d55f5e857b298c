"""The watch that stops a machine nobody calls: what it takes for a sign of life, in time that passes when told."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import io
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from snapshots import NOW, S, job, lease, snap
from store import add_job, add_lease, opened

from daemon.box import onstart
from daemon.clock import ManualClock
from daemon.control.link import Link
from daemon.control.watch import CALL_S, away_limit_s
from daemon.domain.lifecycle import JobState
from daemon.domain.money import MICRO
from daemon.domain.plan import silence_limit
from daemon.settings import Image, Paths, Settings
from daemon.store import leases
from remote_payload import away

HOUR_S = 3600.0
LIMIT_S = HOUR_S
SILENCE_S = LIMIT_S - 2 * away.LOOK_S  # after so much it acts
STARTED_AT = 1_000.0
SCRIPT_LIMIT = 4096  # characters, the market's


class Off(Exception):
    """The machine is stopped, and the watch with it."""


class Box:
    """A root, a clock that moves when the watch sleeps, and a market that is asked to stop the instance.

    It agrees or not, as `agrees` says, and does what it agreed to while it `acts`.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, STARTED_AT
        self.passes: Callable[[float], None] = lambda elapsed_s: None
        self.agrees = iter([True])
        self.acts = iter([True])
        self.asked_at: list[float] = []
        self.is_off = False

    def watch(self) -> None:
        """From the container's start on, until it is off."""
        with pytest.raises(Off):
            away.watch(self.root, LIMIT_S)

    def sleep(self, seconds: float) -> None:
        if self.is_off:
            raise Off
        self.now += seconds
        self.passes(self.now - STARTED_AT)

    def stop_instance(self) -> bool:
        self.asked_at.append(self.now - STARTED_AT)
        agreed = next(self.agrees)
        self.is_off = agreed and next(self.acts)
        return agreed

    def sign(self, name: str) -> None:
        """Written again, at a time that is another one whatever the real clock says."""
        file = self.root / "run" / name
        before = file.stat().st_mtime if file.exists() else 0.0
        file.touch()
        away.os.utime(file, (before + 1, before + 1))


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    one = Box(tmp_path)
    monkeypatch.setattr(away.time, "monotonic", lambda: one.now)
    monkeypatch.setattr(away.time, "sleep", one.sleep)
    monkeypatch.setattr(away, "stop_instance", one.stop_instance)
    yield one


def test_nobody_ever_calls(box: Box) -> None:
    """From the container's start on, with nothing uploaded: it is stopped before the limit is spent."""
    box.watch()

    assert box.asked_at == [SILENCE_S]


def test_the_owner_is_told_before_it_stops(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice in a silence, once each, and again in the next one; with the job's name, at the address in job.json."""
    posted: list[tuple[float, str, str]] = []

    class Answer:
        def close(self) -> None: ...

    def urlopen(request: urllib.request.Request, timeout: float) -> Answer:
        posted.append((box.now - STARTED_AT, request.full_url, cast(bytes, request.data).decode()))
        return Answer()

    def passes(elapsed_s: float) -> None:
        if elapsed_s == SILENCE_S * 0.75 // away.LOOK_S * away.LOOK_S:
            box.sign("called")

    monkeypatch.setattr(away.urllib.request, "urlopen", urlopen)
    (box.root / "run").mkdir()
    (box.root / "run" / "job.json").write_text('{"name": "quick", "job": "abc123", "notify_url": "http://phone/topic"}')
    box.passes = passes

    box.watch()

    assert [text.split(": ")[1] for _, _, text in posted] == ["waiting for home", "waiting for home", "stopping soon"]
    assert {url for _, url, _ in posted} == {"http://phone/topic"}
    assert all(text.startswith("homeport quick (abc123): ") and text.endswith("jobctl up") for _, _, text in posted)
    assert posted[-1][0] < box.asked_at[0]


@pytest.mark.parametrize(
    "job", [None, "{", "[]", '{"notify_url": null}', '{"name": "n", "job": "j", "notify_url": "?"}']
)
def test_nobody_to_tell(box: Box, job: str | None) -> None:
    """No job yet, a broken file, no address, or a bad one: it is stopped all the same."""
    if job is not None:
        (box.root / "run").mkdir()
        (box.root / "run" / "job.json").write_text(job)
    box.watch()
    assert box.asked_at == [SILENCE_S]


def test_a_disk_that_fails_puts_nothing_off(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be read says nothing: the watch goes on to its end."""

    (box.root / "run").mkdir()
    box.sign("called")
    sound, looks = Path.stat, iter(range(1_000_000))

    def fails_now_and_then(path: Path, **more: Any) -> Any:
        if path.name == "called" and next(looks) % 3:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return sound(path, **more)

    box.passes = lambda elapsed_s: monkeypatch.setattr(Path, "stat", fails_now_and_then)
    box.watch()

    assert box.asked_at == [SILENCE_S]


def test_a_log_on_a_full_disk_stops_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written, and the market is asked all the same."""
    asked: list[str] = []

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def urlopen(request: urllib.request.Request, timeout: float) -> io.StringIO:
        asked.append(request.full_url)
        return io.StringIO("{}")

    monkeypatch.setenv("CONTAINER_ID", "7")
    monkeypatch.setenv("CONTAINER_API_KEY", "for-a-test")
    monkeypatch.setattr(away.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(sys, "stdout", Full())

    assert away.stop_instance()
    assert len(asked) == 1


@pytest.mark.parametrize("name", away.SIGNS)
def test_signs_of_life_put_it_off(box: Box, name: str) -> None:
    """A caller, a beating runner, a stage that outlived its runner: the limit counts from the last sign on."""
    worked_s = 8 * HOUR_S

    def passes(elapsed_s: float) -> None:
        if elapsed_s <= worked_s:
            box.sign(name)

    box.passes = passes

    box.watch()

    assert box.asked_at == [worked_s + SILENCE_S]


@pytest.mark.parametrize(
    ("said", "silence_s"),
    [("1800\n", 1800 - 2 * away.LOOK_S), ("7200\n", 7200 - 2 * away.LOOK_S), ("", SILENCE_S), ("soon", SILENCE_S)],
)
def test_a_call_says_how_long_the_next_one_may_stay_away(box: Box, said: str, silence_s: float) -> None:
    """At another price than at its start, a hold pays for another time; a call that says nothing leaves the old one."""

    def passes(elapsed_s: float) -> None:
        if elapsed_s == 600.0:
            (box.root / "run" / "called").write_text(said)

    box.passes = passes

    box.watch()

    assert box.asked_at == [600.0 + silence_s]


def test_the_box_hears_of_another_price(tmp_path: Path) -> None:
    """The connection stands; what the next calls allow follows the price that was listed last."""
    allowed: list[float] = []
    box = SimpleNamespace(allow_silence=allowed.append)
    world = SimpleNamespace(settings=Settings(Paths(tmp_path, tmp_path, tmp_path)), connect=lambda address, count: box)
    link = Link(cast(Any, world), silence_limit=2 * MICRO)
    lease = SimpleNamespace(
        id=1, instance_id=7, direct="192.0.2.1:22", proxy=None, host_key="k", challenge="c", root="r", python="p",
        price_per_hour=2 * MICRO,
    )  # fmt: skip

    async def look() -> None:
        for price in (2 * MICRO, 4 * MICRO):
            lease.price_per_hour = price
            assert await link.to(cast(Any, lease)) is box

    asyncio.run(look())

    assert allowed == [HOUR_S, HOUR_S / 2]


def test_a_long_transfer_tells_of_another_price_as_it_goes(tmp_path: Path) -> None:
    """The price rose while one act lasts: the bytes that are counted bring it along."""
    allowed: list[float] = []
    box, database, counted = SimpleNamespace(allow_silence=allowed.append), opened(tmp_path), list[Any]()
    world = SimpleNamespace(
        settings=Settings(Paths(tmp_path, tmp_path, tmp_path)),
        database=database,
        clock=ManualClock(),
        connect=lambda address, count: counted.append(count) or box,
    )
    with database.write() as c:
        add_job(c)
        lease = leases.get(c, add_lease(c, price_per_hour=2 * MICRO))
    asyncio.run(Link(cast(Any, world), silence_limit=2 * MICRO).to(lease))
    with database.write() as c:
        leases.change(c, lease.id, price_per_hour=4 * MICRO)

    counted[0](10, 20)

    assert allowed == [HOUR_S, HOUR_S / 2]
    with database.read() as c:
        assert (leases.get(c, lease.id).bytes_up, leases.get(c, lease.id).bytes_down) == (20, 10)
    database.close()


def test_a_refusal_is_asked_again(box: Box) -> None:
    """The meter runs until the market agrees; a caller who comes meanwhile is not stopped."""
    box.agrees = iter([False, False, True])

    def passes(elapsed_s: float) -> None:
        if elapsed_s == LIMIT_S:
            box.sign("called")

    box.passes = passes

    box.watch()

    assert box.asked_at == [SILENCE_S, SILENCE_S + away.LOOK_S, LIMIT_S + SILENCE_S]


def test_what_the_market_agreed_to_and_did_not_do_is_asked_again(box: Box) -> None:
    """Its yes is not the end: while this runs the machine bills."""
    box.agrees, box.acts = iter([True, True]), iter([False, True])

    box.watch()

    first, second = box.asked_at
    assert first == SILENCE_S
    assert second - first == pytest.approx(away.AGAIN_S, abs=2 * away.LOOK_S)


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """The address of somebody who gives this one answer to whatever is asked, as often as it is."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:  # the test is over
                return
            with caller:
                caller.recv(65536)
                caller.sendall(answer)

    def listen(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield listen
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


NO_HTTP = b"220 mail.example ESMTP\r\n"


def http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)


@pytest.mark.parametrize(
    ("answer", "agreed"),
    [
        (http(b'{"success": true}'), True),
        (http(b'{"msg": "stopping"}'), True),
        (http(b'{"success": false, "error": "busy", "msg": "try again"}'), False),
        (http(b"<html>Sign in to this network</html>"), False),
        (http(b"[]"), False),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", False),
        (NO_HTTP, False),
    ],
)
def test_what_counts_as_a_yes(
    answering: Callable[[bytes], str], monkeypatch: pytest.MonkeyPatch, answer: bytes, agreed: bool
) -> None:
    """A reply with 200 may still refuse, and what is no reply of the market agrees to nothing."""
    own = {"CONTAINER_ID": "7", "CONTAINER_API_KEY": "scoped", "VAST_URL": answering(answer)}
    monkeypatch.setattr(away, "container_environment", lambda: own)

    assert away.stop_instance() is agreed


def test_an_address_that_speaks_no_http_changes_nothing(box: Box, answering: Callable[[bytes], str]) -> None:
    """The owner chose it, and it may be anything: the machine is stopped all the same."""
    (box.root / "run").mkdir()
    job = f'{{"name": "n", "job": "j", "notify_url": "{answering(NO_HTTP)}"}}'
    (box.root / "run" / "job.json").write_text(job)

    box.watch()

    assert box.asked_at == [SILENCE_S]


def test_the_first_process_may_not_be_ours_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then this process's own environment has to do, and the watch lives on."""
    monkeypatch.delenv("CONTAINER_API_KEY", raising=False)

    assert away.container_environment(tmp_path) == dict(away.os.environ)


def test_one_watch_is_enough(box: Box) -> None:
    """A second one ends at once, and stops nothing."""
    (box.root / "run").mkdir()
    with open(box.root / "run" / "away.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        away.watch(box.root, LIMIT_S)

    assert box.now == STARTED_AT
    assert not box.asked_at


def test_the_market_takes_the_script() -> None:
    """With the default image and the longest limit there is room for it in a create request."""
    script = onstart.script(Image(), away_limit_s(100 * MICRO, 1))

    assert len(script) < SCRIPT_LIMIT


@pytest.mark.parametrize(
    ("hold", "price", "expected_s"),
    [(2 * MICRO, 2 * MICRO, HOUR_S), (2 * MICRO, 20 * MICRO, 360.0), (MICRO // 100, 20 * MICRO, 3 * CALL_S)],
)
def test_the_limit_is_what_a_hold_may_cost(hold: int, price: int, expected_s: float) -> None:
    """Dollars by price; never less than the pause between two calls allows."""
    assert away_limit_s(hold, price) == expected_s


@pytest.mark.parametrize(
    ("held_s", "allowed_s"), [(None, HOUR_S), (900, 2700.0), (3000, 600.0), (3600, 600.0), (9000, 600.0)]
)
def test_a_hold_leaves_less_for_a_silence(held_s: int | None, allowed_s: float) -> None:
    """What it has cost is gone; the patience with a lost connection stays, or each would end a rescue."""
    since = None if held_s is None else NOW - held_s * S
    machine = lease(created_at=NOW - 10_000 * S)

    left = silence_limit(snap(job(JobState.SFT, hold_since=since), machine), machine)

    assert away_limit_s(left, machine.price_per_hour) == pytest.approx(allowed_s, abs=0.01)
