"""How many lanes a transfer takes, and what becomes of blocks whose lane lags or dies. Lanes are stand-ins here."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any, cast

import pytest

from daemon.box import lanes
from daemon.box.lanes import Lane, Traffic
from daemon.errors import LinkLost, TransferFailed


class Road:
    """Links that carry nothing; counts how many were dialled."""

    def __init__(self) -> None:
        self.dialled = 0

    async def dial(self) -> Any:
        self.dialled += 1
        return self

    def abort(self) -> None:
        return None


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The waits of the engine, shortened."""
    for name, seconds in (("GROW_S", 0.1), ("TEND_S", 0.01), ("LATE_S", 0.1), ("STALL_S", 60.0)):
        monkeypatch.setattr(lanes, name, seconds)
    monkeypatch.setattr(lanes, "FIRST_PAUSE_S", 0.0)
    yield


def batches(count: int, each: int = 4) -> list[list[int]]:
    return [list(range(start, min(start + each, count))) for start in range(0, count, each)]


async def test_lanes_are_added_while_each_makes_it_faster() -> None:
    """A line that bounds every connection gets all the connections there are."""
    road, free = Road(), Counter[Lane]()

    async def move(lane: Lane, block: int) -> None:
        loop = asyncio.get_running_loop()
        free[lane] = max(free[lane], int(loop.time() * 1e6)) + 2000  # 500 blocks a second for each lane
        await asyncio.sleep(free[lane] / 1e6 - loop.time())

    await Traffic(batches(3000), move, road.dial, lanes=2, outstanding=4, patience_s=1.0).run()

    assert road.dialled == lanes.MAX_LANES


async def test_lanes_are_not_added_where_they_do_not_help() -> None:
    """A line that bounds the whole gets one more for trying, and perhaps a second while the first is judged."""
    road, free_at = Road(), 0.0

    async def move(lane: Lane, block: int) -> None:
        nonlocal free_at
        now = asyncio.get_running_loop().time()
        free_at = max(free_at, now) + 0.001
        await asyncio.sleep(free_at - now)

    await Traffic(batches(1000), move, road.dial, lanes=2, outstanding=4, patience_s=1.0).run()

    assert 3 <= road.dialled < lanes.MAX_LANES


async def test_a_block_that_lags_at_the_end_is_asked_for_on_another_lane() -> None:
    """One lane keeps what it has for ever: the others take it over, each block once, and the transfer ends."""
    road, moved, again = Road(), Counter[int](), list[int]()
    slow: Lane | None = None

    async def move(lane: Lane, block: int) -> None:
        nonlocal slow
        slow = slow or lane
        if lane is slow:
            await asyncio.Event().wait()
        await asyncio.sleep(0.001)
        moved[block] += 1

    traffic = Traffic(batches(64, 16), move, road.dial, lanes=3, outstanding=4, patience_s=9.0, on_again=again.append)
    async with asyncio.timeout(20):
        await traffic.run()

    assert moved.keys() == set(range(64))
    assert len(again) == 4  # what was outstanding on the slow one; what it had not asked for was simply taken
    assert len(set(again)) == 4


async def test_a_block_that_waits_to_be_admitted_does_not_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk or the pace holds the last block up for longer than any may take: nothing is asked again."""
    road, moved, again = Road(), Counter[int](), list[int]()
    monkeypatch.setattr(lanes, "STALL_S", 0.2)

    async def admit(block: int) -> None:
        await asyncio.sleep(0.5 if block == 199 else 0.0)

    async def move(lane: Lane, block: int) -> None:
        moved[block] += 1

    await Traffic(
        batches(200), move, road.dial, lanes=2, outstanding=2, patience_s=9.0, admit=admit, on_again=again.append
    ).run()

    assert moved == Counter(range(200))
    assert again == [] and road.dialled == 2


async def test_what_a_dead_lane_leaves_is_carried_by_the_others() -> None:
    """A link that dies in the middle costs its outstanding blocks, asked for again; nothing is left out."""
    road, moved, again, died = Road(), Counter[int](), list[int](), False

    async def move(lane: Lane, block: int) -> None:
        nonlocal died
        await asyncio.sleep(0.001)
        if block == 20 and not died:
            died = True
            raise LinkLost("cut")
        moved[block] += 1

    traffic = Traffic(batches(100), move, road.dial, lanes=2, outstanding=2, patience_s=9.0, on_again=again.append)
    await traffic.run()

    assert moved.keys() == set(range(100))
    assert again == [20]


async def test_what_waits_to_be_admitted_when_its_link_dies_was_not_sent() -> None:
    """It goes to the next connection and counts as sent once."""
    road, moved, again = Road(), Counter[int](), list[int]()

    async def admit(block: int) -> None:
        if road.dialled == 1 and block:
            await asyncio.sleep(0.1)

    async def move(lane: Lane, block: int) -> None:
        if road.dialled == 1:
            raise LinkLost("cut")
        moved[block] += 1

    await Traffic(
        batches(8), move, road.dial, lanes=1, outstanding=4, patience_s=9.0, admit=admit, on_again=again.append
    ).run()

    assert moved == Counter(range(8))
    assert again == [0]


async def test_what_is_added_when_the_last_lane_has_ended() -> None:
    """A chunk read back wrong may come just then: a new lane carries it."""
    road, moved = Road(), list[int]()

    async def move(lane: Lane, block: int) -> None:
        moved.append(block)

    traffic = Traffic([[1]], move, road.dial, lanes=1, outstanding=1, patience_s=1.0)
    keep = traffic._keep_lane

    async def keep_and_add() -> None:
        await keep()
        if moved == [1]:
            traffic.add([2])

    traffic._keep_lane = keep_and_add  # type: ignore[method-assign]
    await asyncio.wait_for(traffic.run(), 5.0)
    assert moved == [1, 2]


async def test_what_is_wrong_with_the_source_ends_it_at_once() -> None:
    """Only a lost link is tried again."""
    road = Road()

    async def move(lane: Lane, block: int) -> None:
        raise TransferFailed("another file")

    with pytest.raises(TransferFailed, match="another file"):
        await Traffic(batches(9), move, road.dial, lanes=2, outstanding=2, patience_s=9.0).run()


async def test_without_progress_patience_ends() -> None:
    """Links that die as soon as they are used are given up after the patience."""
    road = Road()

    async def move(lane: Lane, block: int) -> None:
        raise LinkLost("cut")

    with pytest.raises(LinkLost):
        await Traffic(batches(9), cast(Any, move), road.dial, lanes=2, outstanding=2, patience_s=0.2).run()
    assert road.dialled > 2


class Reader:
    """An SFTP channel that opens nothing before `together` files are asked for, and counts what is open."""

    longest = 1000

    def __init__(self, together: int) -> None:
        self._together = together
        self._waiting = 0
        self._enough = asyncio.Event()
        self.opened: list[str] = []
        self.closed: list[bytes] = []

    async def open(self, path: str) -> tuple[bytes, int]:
        self._waiting += 1
        if self._waiting >= self._together:
            self._enough.set()
        await self._enough.wait()
        self.opened.append(path)
        return path.encode(), 10

    async def read(self, handle: bytes, offset: int, size: int) -> list[memoryview]:
        assert handle not in self.closed
        await asyncio.sleep(0)
        return [memoryview(bytes(size))]

    async def close(self, handle: bytes) -> None:
        self.closed.append(handle)


class ToReader:
    """A link to it."""

    name = "box"

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def ranges(self) -> Any:
        return self._reader

    def count(self, up: int, down: int) -> None:
        return None

    def abort(self) -> None:
        return None


async def test_small_files_are_opened_together_once_each_and_not_kept_open() -> None:
    """A thousand of them cost few round trips, and no more handles than a server has."""
    reader = Reader(together=lanes.READS // 2)  # two blocks of each file are under way

    async def dial() -> Any:
        return ToReader(reader)

    async def move(lane: Lane, block: tuple[str, int]) -> None:
        await lane.read(block[0], block[1], 5, of=10)

    files = [[(f"f{i}", 0), (f"f{i}", 5)] for i in range(1000)]
    async with asyncio.timeout(20):
        await Traffic(files, move, dial, lanes=1, outstanding=lanes.READS, patience_s=9.0, most=1).run()

    assert len(reader.opened) == len(set(reader.opened)) == 1000
    assert len(reader.opened) - len(reader.closed) <= 100
