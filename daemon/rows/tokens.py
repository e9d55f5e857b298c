"""How long the rows are in tokens, and which max_length fits them, where the model's tokenizer is at hand.

The texts that are counted are made by the payload's own code, so what is counted here is what is trained there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daemon.errors import SpecError
from daemon.rows.readers import INSTALL
from daemon.rows.shapes import BadRow, Row
from daemon.rows.tokenizer import Tokenizer, settings_of
from remote_payload import lengths
from remote_payload.contract import Stage

if TYPE_CHECKING:
    from remote_payload.tokens import Text  # imports jinja2, an extra here

MAY_CUT = {"sft": lengths.MAY_CUT[Stage.SFT], "dpo": lengths.MAY_CUT[Stage.DPO]}  # share of the rows


class Counter:
    """Rows as the model in `folder` would get them in training.

    Raises SpecError when the packages or the tokenizer are missing.
    """

    def __init__(self, folder: Path, reasoning: str = "keep") -> None:
        try:
            from remote_payload import tokens
            from remote_payload.templates import for_training, may_be_replaced
        except ImportError as error:
            raise SpecError([f"counting tokens needs {error.name}, which is not installed"], hint=INSTALL) from error
        self._folder, self._reasoning, self._payload = folder, reasoning, tokens
        self._tokenizer = Tokenizer(folder)
        self._tokenizer.chat_template = for_training(self._tokenizer)
        self._unsure = self._tokenizer.chat_template is not None and may_be_replaced(self._tokenizer)

    def length(self, row: Row) -> int:
        """Tokens of a canonical row, the end-of-text token included; of a pair, those of its longer half.

        Raises BadRow when the chat template cannot say it.
        """
        return max(self._tokenizer.count(text.text, special=text.plain) + text.plain for text in self._texts(row))

    def rendered(self, row: Row) -> str:
        """The row's text; of a pair, that of the chosen half. Raises BadRow."""
        return self._texts(row)[0].text

    def fitting(self, stages: Iterable[Sequence[int]]) -> int | None:
        """The max_length that the box will derive from the lengths of each stage's rows; None without any."""
        counted = [list(stage) for stage in stages if stage]
        return lengths.fitting(counted, self._longest()) if counted else None

    def _longest(self) -> int:
        longest = settings_of(self._folder / "config.json").get("max_position_embeddings")
        return longest if isinstance(longest, int) else lengths.LONGEST

    def _texts(self, row: Row) -> tuple[Text, ...]:
        from jinja2 import TemplateError

        from remote_payload.reasoning import answers, has, with_reasoning

        try:
            return self._payload.texts(self._tokenizer, with_reasoning(row, self._reasoning))
        except (self._payload.RowRefused, TemplateError) as error:
            if self._unsure and any(map(has, answers(row))):
                return (self._words(row),)
            raise BadRow(str(error)) from error

    def _words(self, row: Row) -> Text:
        """What a row says, without what a template writes around it: for one whose reasoning only TRL's variant of the
        template keeps. The machine has that variant, and the last word."""
        turns = (turn for value in row.values() if isinstance(value, list) for turn in value)
        return self._payload.Text("\n".join(str(turn.get("content") or "") for turn in turns), [], plain=True)
