"""How busy the cards are, for the heartbeat: a stage that is slow looks different from one that hangs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

PATIENCE_S = 5.0
COMMAND = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,memory.total",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True)
class Load:
    """Percent: of the busiest card's time, of the fullest card's memory; None where it is not known."""

    busy: float | None = None
    memory: float | None = None


@dataclass
class Cards:
    """Asks nvidia-smi. Where a card fell off its bus that cannot even be killed, so nothing waits for its end."""

    unanswered: subprocess.Popen[str] | None = None

    def load(self) -> Load:
        """What nvidia-smi says now; nothing where there is none, it does not answer, or an earlier one still hangs."""
        if self.unanswered and self.unanswered.poll() is None:
            return Load()
        try:
            asked = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:  # no card, or no driver's tool
            return Load()
        with asked.stdout:  # type: ignore[union-attr]  # it is a pipe
            try:
                printed, _ = asked.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:  # it may not even end when it is killed: no beat waits for that
                asked.kill()
                self.unanswered = asked
                return Load()
        return Load() if asked.returncode else read(printed)


def read(text: str) -> Load:
    """One line a card: percent, MiB used, MiB in all. A figure that a card does not give is a word there."""
    cards = [[figure.strip() for figure in line.split(",")] for line in text.splitlines()]
    whole = [card for card in cards if len(card) == 3]
    busy = [float(card[0]) for card in whole if card[0].isdigit()]
    full = [100 * int(card[1]) / int(card[2]) for card in whole if card[1].isdigit() and card[2].isdigit()]
    return Load(max(busy, default=None), round(max(full), 1) if full else None)
