"""The one piece of news that no row can carry: that rows cannot be written. It is told past the database."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.control.telling import SELDOM_S, again_s
from daemon.control.world import World
from daemon.errors import StoreError

TITLE = "homeport: its state cannot be written"


@dataclass
class Unwritable:
    """Tells the person once, and again when it comes back; of a disk at its brim, once an hour."""

    world: World
    _tries: int = 0
    _told: bool = False
    _due: float = 0.0  # by the boot clock

    async def tell(self, error: StoreError) -> None:
        now = self.world.clock.boot()
        if self._told or now < self._due:
            return
        again, self._due = self._tries > 0, now + again_s(self._tries)
        self._tries += 1
        text = (
            f"{error}. Until it can, no limit of cost or time is enforced and no model comes home. Next: {error.hint}"
        )
        self._told = await self.world.notify(TITLE, text, again)
        if self._told:
            self._due = now + SELDOM_S

    def over(self) -> None:
        if self._told or self.world.clock.boot() >= self._due:
            self._tries = 0
        self._told = False
