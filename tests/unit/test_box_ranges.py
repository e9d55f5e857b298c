"""The reader of ranges against a server that a test speaks for, byte by byte where it matters."""

from __future__ import annotations

import asyncio
from struct import pack, unpack_from
from typing import Any, cast

import asyncssh
import pytest

from daemon.box.ranges import ATTRIBUTES, DATA, EXTENDED_REPLY, HANDLE, LIMITS, STATUS, VERSION, RangeReader


class Channel:
    """What the reader wrote, message by message."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def asked(self) -> list[tuple[int, int]]:
        """(kind, number) of everything sent since the last time."""
        found, rest, self.sent = [], self.sent, b""
        while rest:
            length, kind, number = unpack_from(">IBI", rest)
            found.append((kind, number))
            rest = rest[4 + length :]
        return found


def message(kind: int, number: int, body: bytes = b"") -> bytes:
    return pack(">IBI", 5 + len(body), kind, number) + body


def text(content: bytes) -> bytes:
    return pack(">I", len(content)) + content


async def begun() -> tuple[RangeReader, Channel]:
    reader, channel = RangeReader(), Channel()
    reader.connection_made(cast(Any, channel))
    reader.session_started()
    await asyncio.sleep(0)
    assert [kind for kind, _ in channel.asked()] == [1, 200]
    return reader, channel


async def test_a_file_is_opened_and_read_whatever_the_packets() -> None:
    """Answers in any order, cut anywhere, several in one packet; the limit of the server is kept."""
    reader, channel = await begun()
    hello = message(VERSION, 3) + message(EXTENDED_REPLY, LIMITS, pack(">QQQQ", 262144, 1000, 1000, 0))
    for byte in hello:
        reader.data_received(bytes([byte]))
    assert reader.longest == 1000

    opening = asyncio.create_task(reader.open("/there"))
    await asyncio.sleep(0.01)
    (_, opened), (_, looked) = channel.asked()
    reader.data_received(message(ATTRIBUTES, looked, pack(">IQ", 1, 12)) + message(HANDLE, opened, text(b"h1")))
    assert await opening == (b"h1", 12)

    reads = [asyncio.create_task(reader.read(b"h1", offset, 6)) for offset in (0, 6, 12)]
    await asyncio.sleep(0.01)
    (_, one), (_, two), (_, three) = channel.asked()
    answers = message(DATA, two, text(b"world!")) + message(DATA, one, text(b"hello "))
    for start in range(0, len(answers), 3):
        reader.data_received(answers[start : start + 3])
    reader.data_received(message(STATUS, three, pack(">I", 1) + text(b"End of file") + text(b"")))

    assert [b"".join(await read) for read in reads] == [b"hello ", b"world!", b""]


@pytest.mark.parametrize(
    "answer",
    [
        pack(">IBI", 4, DATA, 1),
        pack(">IBI", 1 << 30, DATA, 1),
        message(VERSION, 2),
        message(DATA, 99, text(b"unasked")),
    ],
    ids=["too short", "too long", "version 2", "unasked"],
)
async def test_nonsense_ends_the_channel(answer: bytes) -> None:
    """What breaks the protocol fails every question at once; nothing of such a length is collected."""
    reader, channel = await begun()
    asked = asyncio.create_task(reader.read(b"h", 0, 10))
    await asyncio.sleep(0.01)

    reader.data_received(answer)

    with pytest.raises(asyncssh.SFTPBadMessage):
        await asked
    assert channel.is_aborted
    with pytest.raises(asyncssh.SFTPConnectionLost):
        await reader.read(b"h", 0, 10)


@pytest.mark.parametrize("body", [text(b"more than ten bytes"), text(b"")], ids=["longer", "empty"])
async def test_another_length_than_asked_for_is_refused(body: bytes) -> None:
    """A block would land where it does not belong, or the same one would be asked for for ever."""
    reader, _ = await begun()
    asked = asyncio.create_task(reader.read(b"h", 0, 10))
    await asyncio.sleep(0.01)

    reader.data_received(message(DATA, 1, body))

    with pytest.raises(asyncssh.SFTPBadMessage):
        await asked


@pytest.mark.parametrize("kind", [STATUS, DATA])
async def test_an_answer_without_a_body_is_refused(kind: int) -> None:
    reader, _ = await begun()
    asked = asyncio.create_task(reader.read(b"h", 0, 10))
    await asyncio.sleep(0.01)

    reader.data_received(message(kind, 1))

    with pytest.raises(asyncssh.SFTPBadMessage):
        await asked


async def test_a_refusal_carries_the_servers_words() -> None:
    """The status of a file that cannot be opened."""
    reader, channel = await begun()
    opening = asyncio.create_task(reader.open("/there"))
    await asyncio.sleep(0.01)
    for _, number in channel.asked():
        reader.data_received(message(STATUS, number, pack(">I", 2) + text(b"No such file") + text(b"")))

    with pytest.raises(asyncssh.SFTPError, match="No such file"):
        await opening


async def test_a_lost_channel_fails_what_waits() -> None:
    """Nobody waits for an answer that cannot come."""
    reader, _ = await begun()
    asked = asyncio.create_task(reader.read(b"h", 0, 10))
    await asyncio.sleep(0.01)

    reader.connection_lost(None)

    with pytest.raises(asyncssh.SFTPConnectionLost):
        await asked
