"""The one connection of a job: to the box of its current lease, at the market's newest address."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.box.address import BoxAddress
from daemon.box.box import Box
from daemon.box.contact import ANSWER_S, FILE_S
from daemon.control.watch import away_limit_s
from daemon.control.world import World
from daemon.domain.records import Lease
from daemon.store import leases

HEARD_BYTES = 1 << 20  # more than commands and their answers come to
EXCUSED_MS = 3_600_000  # of acts that come to no end, while the box answers well in between
HEARD_MS = round((FILE_S + ANSWER_S) * 1000)  # longer than a box answers that lets no act come to its end


@dataclass
class Link:
    """Made when needed, dropped on sleep, loss and every change of address. `failures` counts attempts in a row.

    `silence_limit`: micro-dollars that a silence of ours may cost, reckoned anew at each look of the driver; None where
    the box is not ours. At each call it hears how long that is at today's price, also amid a long transfer.
    """

    world: World
    silence_limit: int | None = None
    failures: int = 0
    moved: int = 0  # bytes either way since the driver last lost it
    answered_ms: int | None = None  # when its first answer since then came
    _box: Box | None = None
    _address: BoxAddress | None = None

    def heard(self, now_ms: int, lost_since_ms: int | None) -> bool:
        """It was well since then, not only in part: one may answer every command and bring nothing to its end.

        Without a transfer that is believed for a while only: since `lost_since_ms` no act came to its end.
        """
        answered_ms = now_ms - self.answered_ms if self.answered_ms is not None else 0
        excused = now_ms - (lost_since_ms or now_ms) < EXCUSED_MS
        return self.moved >= HEARD_BYTES or (answered_ms > HEARD_MS and excused)

    def lost(self) -> None:
        self.moved, self.answered_ms = 0, None

    @property
    def is_made(self) -> bool:
        return self._box is not None

    async def drop(self) -> None:
        if self._box is not None:
            box, self._box = self._box, None
            await box.aclose()

    async def to(self, lease: Lease) -> Box:
        address = self._address_of(lease)
        if self._box is None or address != self._address:
            await self.drop()
            self._address = address
            self._box = self.world.connect(address, lambda up, down: self._count(lease.id, up, down))
        self._allow_silence(lease)
        return self._box

    def _allow_silence(self, lease: Lease) -> None:
        if self.silence_limit is not None and self._box is not None:
            self._box.allow_silence(away_limit_s(self.silence_limit, lease.price_per_hour))

    def _address_of(self, lease: Lease) -> BoxAddress:
        image = self.world.settings.image
        ends = [end.rsplit(":", 1) for end in (lease.direct, lease.proxy) if end]
        return BoxAddress(
            instance_id=lease.instance_id,
            endpoints=tuple((host, int(port)) for host, port in ends),
            host_key=lease.host_key,
            challenge=lease.challenge or "",
            root=lease.root or image.root,
            python=lease.python or image.python,
        )

    def _count(self, lease: int, up: int, down: int) -> None:
        """Bytes are billed by the host: what left the box for us, and what came in from us."""
        with self.world.database.write() as c:
            row = leases.get(c, lease)
            leases.change(c, lease, bytes_up=row.bytes_up + down, bytes_down=row.bytes_down + up)
        self.moved += up + down
        if down > 0 and self.answered_ms is None:
            self.answered_ms = self.world.clock.wall_ms()
        self._allow_silence(row)
