"""How long the rows are in tokens, and how many would lose their end, where the model's tokenizer is at hand."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass
class Tokens:
    """Tokens of the rows of one file, in file order; of a pair, those of its longer half."""

    max_length: int
    lengths: array[int] = field(default_factory=lambda: array("Q"))
    cut: int = 0  # rows longer than max_length
    first_cut: int = 0  # line

    def add(self, line: int, length: int) -> None:
        self.lengths.append(length)
        if length > self.max_length:
            self.cut += 1
            self.first_cut = self.first_cut or line
