"""What a person is told, from which facts; that each piece is told once, and until it arrives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import store
from scripted_market import ScriptedMarket
from snapshots import NOW, job, lease

from daemon import notify
from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control.operate import Operator
from daemon.control.reconcile import Reconciler
from daemon.control.telling import AGAIN_S, Teller
from daemon.control.world import World
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import MAIN_LINE, JobState
from daemon.domain.news import DAY_MS, Facts, of_job
from daemon.domain.records import LeaseState, OpState
from daemon.domain.spec import JobSpec
from daemon.errors import MarketUnreachable
from daemon.settings import Paths, Settings
from daemon.store import artifacts, jobs, leases, operations, reports

SPEC = JobSpec.model_validate({"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}}).canonical_json()
MINUTE = 60_000


def facts(**values: Any) -> Facts:
    row = Facts(NOW, job(JobState.SFT), [lease()], 10_000_000, None, None, 10 * MINUTE)
    return replace(row, **values)


HELD = {"hold_reason": HoldReason.STAGE_FAILED, "hold_detail": "no memory", "hold_since": NOW - MINUTE}
GONE = {"state": LeaseState.GONE, "status": None}


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ([], {}),
        (["home"], {"job": job(JobState.VERIFIED, model_dir="/m", manifest_sha256="m")}),
        ([], {"job": job(JobState.VERIFIED, model_dir="/m", manifest_sha256="m"), "asks": True}),
        (["held"], {"job": job(JobState.VERIFIED, model_dir="/m", **HELD | {"hold_reason": HoldReason.ASK_DESTROY})}),
        (["held"], {"job": job(JobState.VERIFIED, model_dir="/m", **HELD | {"hold_reason": HoldReason.ARTIFACT_LOST})}),
        (["ended"], {"job": job(JobState.DESTROYED, model_dir="/m"), "leases": [lease(**GONE)]}),
        (["ended"], {"job": job(JobState.FAILED), "leases": []}),
        (["held"], {"job": job(JobState.SFT, **HELD)}),
        (["held"], {"job": job(JobState.QUEUED, **HELD), "leases": []}),
        ([], {"job": job(JobState.SFT, **HELD | {"hold_reason": HoldReason.BY_PERSON})}),
        (
            ["held"],
            {"job": job(JobState.SFT, **HELD | {"hold_reason": HoldReason.BY_PERSON, "hold_since": NOW - DAY_MS})},
        ),
        ([], {"leases": [lease(cost=7_900_000)]}),
        (["budget"], {"leases": [lease(cost=8_000_000)]}),
        ([], {"leases": [lease(cost=8_000_000)], "cost_limit": None}),
        ([], {"loss_ms": NOW + DAY_MS}),
        (["loss"], {"loss_ms": NOW + DAY_MS - 1}),
        ([], {"lost_since": NOW - 10 * MINUTE + 1}),
        (["silent"], {"lost_since": NOW - 10 * MINUTE}),
        ([], {"lost_since": NOW - 10 * MINUTE, "awake_since_ms": NOW - MINUTE}),
        (["lingers"], {"lingering": [lease()]}),
        (["unsaved"], {"not_saved": "a block is wrong"}),
        ([], {"lost_since": NOW - 10 * MINUTE, "leases": [lease(status="stopped", intended="stopped")]}),
        (
            ["silent"],
            {"lost_since": NOW - 10 * MINUTE, "leases": [lease(), lease(status="stopped", state=LeaseState.LOST)]},
        ),
    ],
)
def test_what_is_worth_telling(told: list[str], known: dict[str, Any]) -> None:
    """One row a situation; whatever is told names the job, the money and the next command."""
    found = list(of_job(facts(**known)))

    assert [news.key.split(" ")[0] for news in found] == told
    for news in found:
        assert "n (abc123): " in news.title and "$" in news.text
        assert "jobctl" in news.text


@pytest.mark.parametrize(
    ("said", "unsaid", "known"),
    [
        (
            "The model is in /m. $",
            "returned",
            {"job": job(JobState.VERIFIED, model_dir="/m", **HELD | {"hold_reason": HoldReason.ASK_DESTROY})},
        ),
        (
            "deleted or changed on this disk",
            "The model is in",
            {"job": job(JobState.VERIFIED, model_dir="/m", **HELD | {"hold_reason": HoldReason.ARTIFACT_LOST})},
        ),
        (
            "It went well: the model is verified here. The model is in /m.",
            "may bill",
            {"job": job(JobState.DESTROYED, model_dir="/m"), "leases": [lease(**GONE)]},
        ),
        (
            "ann gave it up. No model. $0.00 in all; not confirmed gone, may bill on: instance 77, to end in the",
            "nothing of it bills",
            {"job": job(JobState.ABANDONED, wish_by="ann"), "leases": [lease(state=LeaseState.WRITTEN_OFF)]},
        ),
        (
            "ann cancelled it. No model. $0.00 in all; nothing of it bills any more. Next: jobctl show abc123",
            "may bill",
            {"job": job(JobState.CANCELLED, wish_by="ann"), "leases": []},
        ),
        (
            "Nothing is rented, and nothing is left to save.",
            "may bill",
            {"job": job(JobState.FAILED), "leases": [lease(**GONE)]},
        ),
    ],
)
def test_what_is_told_is_true(said: str, unsaid: str, known: dict[str, Any]) -> None:
    """Where the model is, why a job ended, and what may bill on: no more than the rows say, and no less."""
    (news,) = of_job(facts(**known))

    assert said in news.text and unsaid not in news.text, news.text


def test_a_hold_is_told_daily_while_it_costs() -> None:
    """A new key each day; none once nothing bills."""

    def key(days: float, rented: list[Any]) -> str:
        held = job(JobState.SFT, **HELD | {"hold_since": NOW - round(days * DAY_MS)})
        (news,) = of_job(facts(job=held, leases=rented))
        return news.key.split(" ")[-1]

    assert [key(days, [lease(status="stopped", intended="stopped")]) for days in (0, 0.9, 1, 2.5)] == [
        "0",
        "0",
        "1",
        "2",
    ]
    assert key(3, [lease(**GONE)]) == "0"


def test_a_hold_that_takes_anothers_place_is_told() -> None:
    """It goes on with the time of the one before it, and is news all the same."""
    keys = {
        news.key
        for reason in (HoldReason.TRANSFER_FAILED, HoldReason.HOST_KEY)
        for news in of_job(facts(job=job(JobState.SFT, **HELD | {"hold_reason": reason})))
    }

    assert len(keys) == 2


# -- told once


class Phone:
    """Where messages arrive; `reached` no more, they do not."""

    def __init__(self) -> None:
        self.reached, self.messages = True, cast(list[tuple[str, bool]], [])
        self.texts: list[str] = []

    async def notify(self, title: str, text: str, again: bool) -> bool:
        self.messages.append((title, again))
        self.texts.append(text)
        return self.reached


@pytest.fixture
def phone() -> Phone:
    return Phone()


@pytest.fixture
def world(tmp_path: Path, phone: Phone) -> Any:
    database, clock = store.opened(tmp_path), ManualClock()
    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))
    operator = Operator(database, ScriptedMarket(), clock, settings)
    yield World(database, operator, clock, settings, phone.notify, cast(Any, None), verify)
    database.close()


async def test_each_piece_is_told_once(world: World, phone: Phone) -> None:
    """Also by the daemon that is started after this one."""
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)
        store.add_lease(c)
        leases.add(c, None, 4711, "hp-test", LeaseState.LIVE, store.NOW)
        jobs.hold(c, jobs.get(c, store.JOB), HoldReason.DISK_FULL, "full", world.clock.wall_ms(), world.database.epoch)

    for teller in (one := Teller(world), one, Teller(world)):
        await teller.run_once()

    assert phone.messages == [
        (f"{store.JOB} ({store.JOB}): HELD: DISK_FULL", False),
        ("Machine 4711 belongs to no job", False),
    ]


@pytest.mark.parametrize(("seen_later_s", "told"), [(600, 0), (1200, 1)])
async def test_a_destroy_that_does_not_take_is_told(world: World, phone: Phone, seen_later_s: int, told: int) -> None:
    """Once the market lists for a quarter of an hour what it agreed to destroy."""
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)
        lease_id = store.add_lease(c)
        asked = store.destroy(c, lease_id, "unused")
        for state in (OpState.SENT, OpState.DONE):
            operations.set_state(c, asked, state, store.NOW)
        leases.change(c, lease_id, last_seen=store.NOW + seen_later_s * 1000)

    await Teller(world).run_once()

    assert phone.messages == [(f"{store.JOB} ({store.JOB}): machine {store.INSTANCE} is not gone", False)] * told


@pytest.mark.parametrize(("hours", "told"), [(0.4, 0), (0.6, 1), (25.0, 2)])
async def test_a_market_that_cannot_be_asked_is_told(world: World, phone: Phone, hours: float, told: int) -> None:
    """After half an hour and then daily, while something waits for its word; on screen just as well."""
    world.operator.market.answers["account"] = MarketUnreachable("HTTP 502")  # type: ignore[attr-defined]
    passes = Reconciler(world.database, world.operator, cast(Any, world.clock), world.settings.timing)
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)
    teller = Teller(world)

    for _ in range(2 + round(hours * 2)):
        await passes.run_once()
        await teller.run_once()
        cast(ManualClock, world.clock).advance(hours * 3600 / (1 + round(hours * 2)))

    assert [title for title, _ in phone.messages] == ["The market cannot be asked"] * told
    assert all("HTTP 502" in text and "Next: jobctl doctor" in text for text in phone.texts)


async def test_a_night_is_no_silence_of_the_market(world: World, phone: Phone) -> None:
    """The last pass before a sleep fails, and the first one after it: nobody asked in between."""
    world.operator.market.answers["account"] = MarketUnreachable("no network yet")  # type: ignore[attr-defined]
    passes = Reconciler(world.database, world.operator, cast(Any, world.clock), world.settings.timing)
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)

    await passes.run_once()
    cast(ManualClock, world.clock).suspend(8 * 3600)
    await passes.run_once()
    await Teller(world).run_once()

    assert phone.messages == []


async def test_a_machine_that_comes_back_after_its_job_is_told(world: World, phone: Phone) -> None:
    """However long ago the job ended; once, with the price and what to type."""
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)
        gone = store.add_lease(c, state=LeaseState.GONE, price_per_hour=400_000)
        old = world.clock.wall_ms() - 3 * DAY_MS
        jobs.move(c, jobs.get(c, store.JOB), JobState.CANCELLED, old, world.database.epoch)
        leases.set_state(c, leases.get(c, gone), LeaseState.LOST, world.clock.wall_ms(), why="reappeared")

    for teller in (one := Teller(world), one, Teller(world)):
        await teller.run_once()

    assert [title for title, _ in phone.messages] == [
        f"{store.JOB} ({store.JOB}): machine {store.INSTANCE} is there again"
    ]
    assert "may bill $0.40/h" in phone.texts[0]
    assert f"Next: jobctl leases or jobctl write-off {store.INSTANCE}" in phone.texts[0]


async def test_a_job_that_asks_is_not_told_to_go(world: World, phone: Phone) -> None:
    """Verified and not held yet, with `destroy: ask` in its spec: the hold that comes is the message."""
    asking = JobSpec.model_validate(
        {"version": 1, "name": "n", "model": "any/m", "sft": {"data": "-"}, "destroy": "ask"}
    ).canonical_json()
    with world.database.write() as c:
        for name, spec in (("going", SPEC), ("asking", asking)):
            store.add_job(c, name, spec_json=spec, manifest_sha256="m")
            artifacts.add_receipt(c, jobs.get(c, name), store.NOW, folder="/m", files="[]", levels="[]", level="full")
            for state in MAIN_LINE[1 : MAIN_LINE.index(JobState.VERIFIED) + 1]:
                jobs.move(c, jobs.get(c, name), state, world.clock.wall_ms(), world.database.epoch)

    await Teller(world).run_once()

    assert [title for title, _ in phone.messages] == ["going (going): the model is home and verified"]


@pytest.mark.parametrize(("before_s", "told"), [(60, False), (-60, True)])
async def test_contact_lost_with_an_earlier_machine_is_not_told_of_this_one(
    world: World, phone: Phone, before_s: int, told: bool
) -> None:
    """A new machine is not silent because one before it was lost."""
    now = world.clock.wall_ms()
    began = now - 3_600_000
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)
        leases.change(c, store.add_lease(c), created_at=began)
        reports.put(c, store.JOB, 1, lost_since=began - before_s * 1000)

    await Teller(world).run_once()

    assert [title.endswith("out of contact") for title, _ in phone.messages] == [True] * told


async def test_what_did_not_arrive_is_told_again(world: World, phone: Phone) -> None:
    """As a second try, which the desktop need not show again."""
    with world.database.write() as c:
        leases.add(c, None, 4711, "hp-test", LeaseState.LIVE, store.NOW)
    teller, phone.reached = Teller(world), False
    await teller.run_once()
    phone.reached = True
    cast(ManualClock, world.clock).advance(AGAIN_S)
    await teller.run_once()
    await teller.run_once()

    assert [again for _, again in phone.messages] == [False, True]


async def test_an_address_that_always_refuses_is_asked_ever_more_seldom(world: World, phone: Phone) -> None:
    """It may have shown the message and answered too late: a day of passes is not thousands of the same message."""
    with world.database.write() as c:
        leases.add(c, None, 4711, "hp-test", LeaseState.LIVE, store.NOW)
    teller, phone.reached = Teller(world), False
    for _ in range(24 * 60):
        await teller.run_once()
        cast(ManualClock, world.clock).advance(60.0)

    assert 24 <= len(phone.messages) <= 36


async def test_what_ended_long_ago_is_not_told(world: World, phone: Phone) -> None:
    """A database from before this version had news."""
    with world.database.write() as c:
        store.add_job(c, spec_json=SPEC)
        old = world.clock.wall_ms() - DAY_MS - 1
        jobs.move(c, jobs.get(c, store.JOB), JobState.CANCELLED, old, world.database.epoch)
    await Teller(world).run_once()
    assert phone.messages == []


# -- the channels


@asynccontextmanager
async def webhook(status: str) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server of one answer: its address, and what it was sent."""
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        received.append(head + await reader.readexactly(length))
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret-topic", received


@pytest.mark.parametrize(("status", "delivered"), [("200 OK", True), ("403 Forbidden", False)])
async def test_the_address_of_the_persons_choice(status: str, delivered: bool) -> None:
    """Title in ntfy's header, both in the body; a refusal is not a delivery, and the address is not repeated."""
    async with webhook(status) as (url, received):
        outcome = await notify.post(url, "Müller: done", "in /models")

    assert outcome.delivered is delivered
    assert status[:3] in outcome.detail and "secret" not in outcome.detail
    assert b"title: m?ller: done" in received[0].lower()
    assert received[0].endswith("Müller: done\nin /models".encode())


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/secret", "http://127.0.0.1:99999/secret", "no address at all", "http://[half"]
)
async def test_nobody_there(url: str) -> None:
    outcome = await notify.post(url, "t", "x")
    assert not outcome.delivered and "secret" not in outcome.detail


@pytest.mark.parametrize(
    ("head", "delivered"),
    [(b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 200 OK\r\nA: ", False)],
    ids=["body", "head"],
)
async def test_a_reply_without_an_end(monkeypatch: pytest.MonkeyPatch, head: bytes, delivered: bool) -> None:
    """The status is enough, and a webhook that sends drop by drop keeps no later message back."""
    monkeypatch.setattr(notify, "POST_S", 0.5)
    left = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head)
        with contextlib.suppress(ConnectionError):  # the client has gone, as it should
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        left.set()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, asyncio.timeout(5):
        outcome = await notify.post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/secret", "t", "x")
        await left.wait()

    assert outcome.delivered is delivered and "secret" not in outcome.detail


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SSL_CERT_FILE", "/nonexistent", "SSL_CERT_FILE=/nonexistent: No such file"),
        ("HTTPS_PROXY", "gopher://ann:secret@proxy:1", "the proxy of the environment"),
        ("HTTPS_PROXY", "socks5://proxy:1", "the proxy of the environment"),
    ],
)
async def test_a_wrong_environment_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    """What is wrong with proxy or certificates is one failed message that names it, not an end of all messages."""
    monkeypatch.setenv(name, value)

    outcome = await notify.post("https://127.0.0.1:1/secret", "t", "x")

    assert not outcome.delivered and said in outcome.detail and "secret" not in outcome.detail


@pytest.mark.parametrize(
    ("script", "delivered", "said"),
    [
        ("exit 0", True, "shown by"),
        ("echo no bus >&2; exit 1", False, "no bus"),
        ("exec sleep 60", False, "did not answer"),
    ],
)
async def test_the_desktop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, delivered: bool, said: str
) -> None:
    """The system's own tool, which may fail or hang: `$4` is the title, however it begins."""
    tool = tmp_path / "notify-send"
    tool.write_text(f'#!/bin/sh\n[ "$3" = --title ] || exit 9\n{script}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(notify, "DESKTOP_S", 0.5)
    monkeypatch.setattr("sys.platform", "linux")

    outcome = await notify.desktop("--title", "text")

    assert outcome.delivered is delivered and said in outcome.detail


@pytest.mark.parametrize("text", ["a\0b", "half a character \ud800"])
async def test_no_text_ends_the_telling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """What a box said stands in the reason of a hold; what no argument can carry is shown without it."""
    tool = tmp_path / "notify-send"
    tool.write_text("#!/bin/sh\nexit 0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("sys.platform", "linux")

    assert (await notify.desktop(text, text)).delivered
    assert not (await notify.post("http://127.0.0.1:1/secret", text, text)).delivered


async def test_a_tool_that_cannot_be_started_ends_no_telling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory or no process is left: the address is still told."""

    async def refused(*command: str, **options: Any) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("asyncio.create_subprocess_exec", refused)

    outcome = await notify.desktop("t", "x")

    assert not outcome.delivered and "Cannot allocate memory" in outcome.detail


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_no_text_is_code(system: str) -> None:
    """Title and text are arguments of their own or come in the environment; never a part of a script."""
    hostile = '"; rm -rf ~; $(reboot) "'
    command = notify.desktop_command(system, hostile, hostile)
    assert all(hostile == word or hostile not in word for word in command)
