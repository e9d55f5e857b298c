"""What the sandbox has ordered to go wrong in this box's sshd: read from files, reported when it strikes.

An order is a file ``orders/<fault>.json`` in the box's folder. What lasts holds until its time; what strikes once is
taken and its file deleted. Each strike is a line of ``struck`` with the order's id.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .boxspec import ORDERS, STRUCK_FILE


@dataclass
class Disturbances:
    """The orders in force. `read` brings them up to date."""

    folder: Path
    _lasting: dict[str, dict[str, Any]] = field(default_factory=dict)
    _flip: dict[str, Any] | None = None
    _cut: dict[str, Any] | None = None
    _noted: set[int] = field(default_factory=set)

    def read(self) -> None:
        lasting: dict[str, dict[str, Any]] = {}
        for file in sorted((self.folder / ORDERS).glob("*.json")):
            order = json.loads(file.read_text())
            match file.stem:
                case "ssh_cut":
                    file.unlink()
                    self._cut = order
                case "byte_flipped":
                    file.unlink()
                    self._flip = order
                case fault:
                    lasting[fault] = order
        self._lasting = lasting

    def cut_ordered(self) -> dict[str, Any] | None:
        """The order to cut that came since the last call."""
        order, self._cut = self._cut, None
        return order

    def delay_s(self, door: str, size: int) -> float:
        """How long `size` bytes take through a door; infinity while nothing passes."""
        if (mute := self._in_force("ssh_mute", door)) is not None:
            self.report(mute)
            return math.inf
        slow = self._in_force("ssh_slow", door)
        return 0.0 if slow is None else slow["delay_s"] + size / slow["bytes_per_s"]

    def swallows_commands(self, home: Path) -> bool:
        """Whether a command lands in tmux, where nobody hears of it."""
        order = self._in_force("tmux")
        if order is None or (home / ".no_auto_tmux").exists():
            return False
        self.report(order)
        return True

    def spoiled(self, path: str, content: bytes) -> bytes:
        """What a read of this file gives: `content`, with one bit wrong while that is ordered."""
        if self._flip is None or not content or not fnmatchcase(Path(path).name, self._flip["name"]):
            return content
        order = self._flip
        order["reads"] -= 1
        if order["reads"] <= 0:
            self._flip = None
        self.report(order)
        wrong = bytearray(content)
        wrong[len(wrong) // 2] ^= 1
        return bytes(wrong)

    def report(self, order: dict[str, Any]) -> None:
        """Note a strike, for whoever asks the sandbox; what lasts is noted once."""
        if "seconds" in order and order["order"] in self._noted:
            return
        self._noted.add(order["order"])
        with open(self.folder / STRUCK_FILE, "a", encoding="utf-8") as file:
            file.write(f"{order['order']}\n")

    def _in_force(self, fault: str, door: str = "") -> dict[str, Any] | None:
        order = self._lasting.get(fault)
        if order is None or time.time() >= order["until"]:
            return None
        return order if order.get("door", "both") in ("both", door) or not door else None
