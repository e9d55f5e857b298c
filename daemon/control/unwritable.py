"""The one piece of news that no row can carry: that rows cannot be written. It is told past the database."""

from __future__ import annotations

from dataclasses import dataclass

from daemon.control.world import World
from daemon.errors import StoreError

TITLE = "homeport: its state cannot be written"


@dataclass
class Unwritable:
    """Tells the person once, and again when it comes back after it was over."""

    world: World
    _tried: bool = False
    _told: bool = False

    async def tell(self, error: StoreError) -> None:
        if self._told:
            return
        again, self._tried = self._tried, True
        text = (
            f"{error}. Until it can, no limit of cost or time is enforced and no model comes home. Next: {error.hint}"
        )
        self._told = await self.world.notify(TITLE, text, again)

    def over(self) -> None:
        self._tried = self._told = False
