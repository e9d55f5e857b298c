"""An SFTP channel that does one thing: read ranges of files, with little work for each byte.

asyncssh's own SFTP client starts a task and copies each block several times; half of a download's CPU time went there.
Here a request is a few bytes in an outbox that is sent once per turn of the loop, and an answer is the packets as they
came. Protocol version 3, draft-ietf-secsh-filexfer-02; `limits@openssh.com` tells the longest read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from struct import pack, unpack, unpack_from

import asyncssh

INIT, VERSION, OPEN, CLOSE, READ, STAT = 1, 2, 3, 4, 5, 17
STATUS, HANDLE, DATA, ATTRIBUTES, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 105, 200, 201
PROTOCOL = 3
AT_END = 1  # status of a read beyond the file's last byte
FOR_READING = 1
HAS_SIZE = 1
LIMITS = 0  # the number of the one request that is not counted
HEADER = 9  # length, kind, number
LONGEST_ANSWER = 1 << 20  # bytes; the box is not trusted to keep to what was asked
SAFE_READ = 32 << 10  # what every server must manage, until it tells more

Answer = tuple[int, list[memoryview]]  # kind, body


class RangeReader(asyncssh.SSHClientSession[bytes]):
    """Raises asyncssh.SFTPError: SFTPConnectionLost when the channel is gone, SFTPBadMessage for nonsense."""

    def __init__(self) -> None:
        self.longest = SAFE_READ
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._asked = LIMITS
        self._outbox: list[bytes] = []
        self._head = bytearray()
        self._kind = self._number = 0
        self._body: list[memoryview] = []
        self._left: int | None = None  # bytes of the body still to come; None: the header comes first
        self._gone = False

    async def open(self, path: str) -> tuple[bytes, int | None]:
        """Handle and size in bytes of a file. Raises asyncssh.SFTPError when it cannot be read."""
        name = _string(path.encode())
        asked = self._ask(OPEN, name + pack(">II", FOR_READING, 0)), self._ask(STAT, name)
        (kind, body), looked = await asyncio.gather(*asked)
        handle = _expect(HANDLE, kind, body)
        attributes = _expect(ATTRIBUTES, *looked)
        (flags,) = unpack_from(">I", attributes)
        if flags & HAS_SIZE and len(attributes) < 12:
            raise asyncssh.SFTPBadMessage("attributes that are cut short")
        return handle[4:], unpack_from(">Q", attributes, 4)[0] if flags & HAS_SIZE else None

    async def read(self, handle: bytes, offset: int, size: int) -> list[memoryview]:
        """At most `size` bytes (never more than `longest`) in several pieces; none at the end of the file."""
        kind, body = await self._ask(READ, _string(handle) + pack(">QI", offset, size))
        if kind == STATUS and b"".join(body)[:4] == pack(">I", AT_END):
            return []
        if kind != DATA or not body or len(body[0]) < 4:
            _expect(DATA, kind, body)
            body = [memoryview(b"".join(body))]
        pieces = [body[0][4:], *body[1:]]
        if not 0 < sum(map(len, pieces)) <= size:
            raise asyncssh.SFTPBadMessage("another length than asked for")
        return pieces

    async def close(self, handle: bytes) -> None:
        """Let go of what `open` gave."""
        await self._ask(CLOSE, _string(handle))

    # -- the channel's callbacks ------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def session_started(self) -> None:
        self._send(INIT, PROTOCOL, b"")
        self._send(EXTENDED, LIMITS, _string(b"limits@openssh.com"))

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        view = memoryview(data)
        while view and not self._gone:
            if self._left is None:
                taken = view[: HEADER - len(self._head)]
                self._head += taken
                if len(self._head) == HEADER:
                    self._begin(*unpack(">IBI", self._head))
            else:
                taken = view[: self._left]
                self._body.append(taken)
                self._left -= len(taken)
            view = view[len(taken) :]
            if self._left == 0:
                self._left = None
                self._answered(self._kind, self._number, self._body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(asyncssh.SFTPConnectionLost(str(exc or "the channel was closed")))

    # -- messages ---------------------------------------------------------------------------------------------------

    def _begin(self, length: int, kind: int, number: int) -> None:
        self._head.clear()
        if not HEADER - 4 <= length <= LONGEST_ANSWER:
            self._fail(asyncssh.SFTPBadMessage(f"an answer of {length} bytes"))
            return
        self._kind, self._number, self._body, self._left = kind, number, [], length - (HEADER - 4)

    def _answered(self, kind: int, number: int, body: list[memoryview]) -> None:
        if kind == VERSION:
            if number != PROTOCOL:
                self._fail(asyncssh.SFTPBadMessage(f"SFTP version {number}"))
        elif number == LIMITS:
            text = b"".join(body)
            if kind == EXTENDED_REPLY and len(text) >= 16:
                self.longest = unpack_from(">Q", text, 8)[0] or self.longest  # packet, read, write, handles
        elif (waiter := self._waiting.pop(number, None)) is None:
            self._fail(asyncssh.SFTPBadMessage("an answer that nobody asked for"))
        elif not waiter.done():  # else whoever asked has left
            waiter.set_result((kind, body))

    def _ask(self, kind: int, body: bytes) -> asyncio.Future[Answer]:
        if self._gone:
            raise asyncssh.SFTPConnectionLost("the channel was closed")
        self._asked = self._asked % 0xFFFFFFFF + 1
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[self._asked] = waiter
        self._send(kind, self._asked, body)
        return waiter

    def _send(self, kind: int, number: int, body: bytes) -> None:
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(pack(">IBI", 5 + len(body), kind, number) + body)

    def _flush(self) -> None:
        message, self._outbox = b"".join(self._outbox), []
        if not self._gone and not self._channel.is_closing():
            self._channel.write(message)

    def _fail(self, error: asyncssh.SFTPError) -> None:
        self._gone = True
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.done():
                waiter.set_exception(error)
        self._channel.abort()


def _string(content: bytes) -> bytes:
    return pack(">I", len(content)) + content


def _expect(wanted: int, kind: int, body: Sequence[memoryview]) -> bytes:
    """The body of the wanted kind of answer. Raises what another kind means."""
    text = b"".join(body)
    if kind == wanted and len(text) >= 4:
        return text
    if kind == STATUS and len(text) >= 8:
        code, length = unpack_from(">II", text)
        raise asyncssh.SFTPError(code, text[8 : 8 + length].decode("utf-8", "replace"))
    raise asyncssh.SFTPBadMessage(f"answer {kind} where {wanted} was expected")
