"""What must hold of a tokenizer and of the rows it made, before anything is trained on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

PROBES = 200  # strings of the data, evenly spread, that both tokenizers must split alike


def parity_problems(raw_file: Path, tokenizer: Any, strings: list[str]) -> list[str]:
    """Where the library's tokenizer and the model's own tokenizer.json disagree: some versions lose every space."""
    if not raw_file.exists():
        return []
    raw = Tokenizer.from_file(str(raw_file))
    for text in strings[:: max(1, len(strings) // PROBES)]:
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = raw.encode(text, add_special_tokens=False).ids
        if ours != own:
            return [f"transformers tokenizes {text[:60]!r} unlike the model's tokenizer.json: {ours[:8]} and {own[:8]}"]
        if _lossless(raw) and (back := tokenizer.decode(ours)) != _normalized(raw, text):
            return [f"the tokens of {text[:60]!r} read {back[:60]!r}"]
    return []


def border_problems(name: str, tokenizer: Any, ends: set[int], rows: list[tuple[list[int], bool]]) -> list[str]:
    """Rows, as (ids, truncated), that do not begin with the one beginning-of-text token or do not end in an end token.

    A model that begins no text with it is not held to it: some use that token otherwise, as the beginning of a turn.
    """
    if not rows:
        return [f"no {name} row is left to train on within max_length"]
    bos, token = tokenizer.bos_token_id, tokenizer.bos_token
    begins = tokenizer("a")["input_ids"][:1] == [bos] or "bos_token" in (tokenizer.chat_template or "")
    repeated = sum(begins and ids.count(bos) > 1 for ids, _ in rows)
    lacking = sum(begins and ids[:1] != [bos] for ids, _ in rows)
    unended = sum(not truncated and ids[-1] not in ends for ids, truncated in rows)
    problems = {
        f"{repeated} of {len(rows)} {name} rows hold {token} more than once; it belongs at their beginning only, "
        "where the tokenizer or the chat template puts it": repeated,
        f"{lacking} of {len(rows)} {name} rows do not begin with {token}": lacking,
        f"{unended} of {len(rows)} {name} rows do not end in an end-of-text token: the model would not stop": unended,
    }
    return [problem for problem, count in problems.items() if count]


def _lossless(raw: Tokenizer) -> bool:
    """Whether decoding gives the text back: byte by byte, as opposed to words whose blanks are made up again."""
    return type(raw.decoder).__name__ == "ByteLevel"


def _normalized(raw: Tokenizer, text: str) -> str:
    return raw.normalizer.normalize_str(text) if raw.normalizer else text
