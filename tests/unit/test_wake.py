"""Sleep, a network that comes back, and a computer that must stay awake: judged from two looks."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import store
from scripted_market import ScriptedMarket

from daemon.artifacts.verify import verify
from daemon.clock import ManualClock
from daemon.control import wake
from daemon.control.driver import Driver
from daemon.control.operate import Operator
from daemon.control.reconcile import Reconciler
from daemon.control.supervisor import STUCK_S, Supervisor
from daemon.control.wake import Look, Wakefulness, comes_home, door_opened, network_came, opens, woke
from daemon.control.world import World
from daemon.domain.holds import HoldReason
from daemon.domain.lifecycle import JobState
from daemon.domain.market import Listing
from daemon.domain.records import StageRun
from daemon.errors import StoreError
from daemon.settings import Paths, Settings
from daemon.store import jobs
from daemon.store.readonly import ReadModel

AT_HOME = frozenset({"10.0.0.5"})
BEFORE = Look(awake_since_ms=100, addresses=AT_HOME)


def test_another_time_since_when_we_are_awake_is_a_sleep() -> None:
    """The clock says it (test_clock.py)."""
    assert woke(BEFORE, dataclasses.replace(BEFORE, awake_since_ms=101))
    assert not woke(BEFORE, BEFORE)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (AT_HOME, AT_HOME, False),
        (AT_HOME, frozenset(), False),
        (frozenset(), AT_HOME, True),
        (AT_HOME, frozenset({"192.168.7.2"}), True),
        (AT_HOME, AT_HOME | {"fd00::5"}, True),
    ],
)
def test_a_new_address_is_the_network(before: frozenset[str], now: frozenset[str], expected: bool) -> None:
    """Coming back and changing counts; going away alone does not: there is nothing to connect with."""
    looks = [dataclasses.replace(BEFORE, addresses=addresses) for addresses in (before, now)]

    assert network_came(*looks) is expected


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [(False, True, True), (None, True, False), (True, True, False), (True, False, False), (False, None, False)],
)
def test_a_door_that_opens_is_the_network(before: bool | None, now: bool | None, expected: bool) -> None:
    """Our address may stay while a router is down: then what counts is that the market takes a connection again."""
    looks = [dataclasses.replace(BEFORE, outside=outside) for outside in (before, now)]

    assert door_opened(*looks) is expected


async def test_a_door_is_open_while_somebody_listens() -> None:
    """Refused is shut; nothing is sent to an open one."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):  # how the caller leaves
            heard.append(await reader.read())
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    found = [await opens(url)]
    server.close()
    await server.wait_closed()
    found.append(await opens(url))

    assert found == [True, False]
    assert not any(heard)


RUNNING, DONE = (StageRun("j", 1, "GGUF", "n", 1, 1, at, None) for at in (None, 2))


@pytest.mark.parametrize(
    ("state", "run", "held", "expected"),
    [
        (JobState.DPO, RUNNING, False, False),
        (JobState.GGUF, RUNNING, False, False),
        (JobState.GGUF, DONE, False, True),
        (JobState.DOWNLOADED, DONE, False, True),
        (JobState.VERIFIED, DONE, False, True),
        (JobState.VERIFIED, DONE, True, False),
        (JobState.DESTROYED, DONE, False, False),
    ],
)
def test_awake_from_the_made_model_to_the_destroyed_machine(
    tmp_path: Path, state: JobState, run: StageRun, held: bool, expected: bool
) -> None:
    """Training needs nobody awake, nor does a job that waits for its person."""
    database = store.opened(tmp_path)
    with database.write() as c:
        store.add_job(c)
        reason = HoldReason.BY_PERSON if held else None
        job = dataclasses.replace(jobs.get(c, store.JOB), state=state, hold_reason=reason)
    database.close()

    assert comes_home(job, [run]) is expected


class Tool:
    """Stands in for the system's own; `refused`: ends at once."""

    def __init__(self, refused: bool = False) -> None:
        self.holds, self.ended = not refused, False

    def end(self) -> None:
        self.ended = True


def test_kept_awake_as_long_as_one_comes_home() -> None:
    """One tool for all of them, ended with the last."""
    tools: list[Tool] = []
    awake = Wakefulness(begin=lambda why: cast(Any, tools.append(Tool()) or tools[-1]))

    kept = [awake.keep(jobs) for jobs in (["a"], ["a", "b"], ["b"], [])]

    assert kept == [True, True, True, False]
    assert [tool.ended for tool in tools] == [True]


@pytest.mark.parametrize("missing", [True, False])
def test_a_refusal_is_asked_once(missing: bool) -> None:
    """No tool, or a system that says no: not asked again for the same jobs, and nothing fails."""
    asked: list[str] = []

    def begin(why: str) -> Any:
        asked.append(why)
        if missing:
            raise OSError("no such tool")
        return Tool(refused=True)

    awake = Wakefulness(begin=begin)

    assert not any(awake.keep(["a"]) for _ in range(3))
    assert asked == ["bringing home a"]


def test_a_tool_that_died_is_begun_anew() -> None:
    """An upgrade of the system ended it after it held: it is no refusal, and the model still comes home."""
    tools: list[Tool] = []
    awake = Wakefulness(begin=lambda why: cast(Any, tools.append(Tool()) or tools[-1]))
    assert all(awake.keep(["a"]) for _ in range(2))
    tools[0].holds = False

    assert [awake.keep(["a"]) for _ in range(2)] == [False, True]
    assert [tool.ended for tool in tools] == [True, False]


@pytest.fixture
def world(tmp_path: Path) -> Any:
    database, clock = store.opened(tmp_path), ManualClock()
    settings = Settings(Paths(tmp_path, tmp_path, tmp_path))

    async def silent(title: str, text: str, again: bool) -> bool:
        return True

    operator = Operator(database, ScriptedMarket(), clock, settings)
    yield World(database, operator, clock, settings, silent, cast(Any, None), verify)
    database.close()


def supervisor(world: World, **ports: Any) -> Supervisor:
    return Supervisor(world, Reconciler(world.database, world.operator, world.clock, world.settings.timing), **ports)


async def test_the_networks_return_wakes_drivers_and_reconcile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off and pause are cut short within one look; nothing is held, failed or written about it."""
    seen = [frozenset[str](), frozenset[str](), AT_HOME]
    woken = asyncio.Event()

    async def drop_link() -> None:
        woken.set()

    monkeypatch.setattr(wake, "TICK_S", 0.01)
    one = supervisor(world, addresses=lambda: seen.pop(0) if len(seen) > 1 else seen[0])
    one.drivers["job"] = cast(Driver, SimpleNamespace(drop_link=drop_link, is_cut_off=False))
    looking = asyncio.create_task(one._look_loop())

    await asyncio.wait_for(woken.wait(), 60)

    assert world.operator.acted.is_set()
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_the_markets_door_wakes_who_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked only while a box is out of contact; with the door open again every pause between attempts is over."""
    doors, cut = [True, False, True], list[str]()
    woken = asyncio.Event()

    async def no_reason() -> None:
        """The line that it fills may be why the door seemed shut."""
        cut.append("other")

    box = SimpleNamespace(is_cut_off=False)

    async def drop_link() -> None:
        woken.set()

    async def knock(url: str) -> bool:
        assert url == world.settings.market_url
        return doors.pop(0)

    def addresses() -> frozenset[str]:
        box.is_cut_off = True  # from the first look on
        return AT_HOME

    box.drop_link = drop_link
    monkeypatch.setattr(wake, "TICK_S", 0.01)
    one = supervisor(world, addresses=addresses, knock=knock)
    one.drivers["job"] = cast(Driver, box)
    one.drivers["other"] = cast(Driver, SimpleNamespace(is_cut_off=False, drop_link=no_reason))
    looking = asyncio.create_task(one._look_loop())

    await asyncio.wait_for(woken.wait(), 60)

    assert not doors and not cut
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_a_link_that_cannot_be_dropped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting the last bytes meets a full disk: the next look comes all the same."""
    flapping = itertools.cycle((AT_HOME, frozenset[str]()))
    tried: list[int] = []
    again = asyncio.Event()

    async def drop_link() -> None:
        tried.append(1)
        if len(tried) > 1:
            again.set()
        raise StoreError("database or disk is full")

    monkeypatch.setattr(wake, "TICK_S", 0.001)
    one = supervisor(world, addresses=lambda: next(flapping))
    one.drivers["job"] = cast(Driver, SimpleNamespace(drop_link=drop_link, is_cut_off=False))
    looking = asyncio.create_task(one._look_loop())

    await asyncio.wait_for(again.wait(), 60)

    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


class HangingMarket(ScriptedMarket):
    """Answers its first listing, and no other."""

    async def listing(self) -> Listing:
        self.asked.append(("listing", 0))
        if len(self.asked) > 1:
            await asyncio.Event().wait()
        return await super().listing()


async def test_the_watchdog_starves_when_reconciling_hangs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed while passes end; a pass that does not is a daemon that its service manager has to start anew."""
    monkeypatch.setattr(wake, "TICK_S", 0.001)
    world.operator.market = HangingMarket()
    said: list[str] = []
    looked = asyncio.Event()

    def addresses() -> frozenset[str]:
        looked.set()
        return AT_HOME

    async def look(times: int) -> None:
        for _ in range(times):
            looked.clear()
            await asyncio.wait_for(looked.wait(), 60)

    one = supervisor(world, tell=lambda *words: said.extend(words), addresses=addresses)
    running = asyncio.create_task(one.run())
    await look(5)
    assert said[:2] == ["STATUS=0 jobs, 0 machines, $0.00/h", "READY=1"]
    assert "WATCHDOG=1" in said

    cast(ManualClock, world.clock).advance(world.settings.timing.idle_every + STUCK_S)
    one.hurry()
    fed = said.count("WATCHDOG=1")
    await look(5)

    assert said.count("WATCHDOG=1") == fed
    one.stop()
    await running
    assert said[-1] == "STOPPING=1"


async def test_status_says_that_the_computer_is_kept_awake(world: World) -> None:
    """What `jobctl status` reads follows the tool: set while a model comes home, cleared when none does."""
    reading = ReadModel(world.database.path, world.settings.paths.job_folders)
    one = supervisor(world, wakefulness=Wakefulness(begin=lambda why: cast(Any, Tool())))
    coming = [False]
    said = []
    with world.database.write() as c:
        store.add_job(c)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wake, "comes_home", lambda job, runs: coming[0])
        for now in (False, True, True, False):
            coming[0] = now
            one._after_pass()
            said.append(reading.money()["kept_awake"])

    assert said == [False, True, True, False]
