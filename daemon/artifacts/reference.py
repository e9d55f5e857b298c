"""Read reference.jsonl: what the merged model and the base model said on the box before quantisation.

It comes from a machine we do not trust and steers what the local model is asked, so every size, id and probability is
bounded here. Logarithms are natural.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

MAX_BYTES = 64 << 20
MAX_PROMPTS = 256
MAX_PROBES = 256
MAX_IDS = 1 << 14
MAX_TEXT = 1 << 20  # characters
MAX_TOP = 64
MAX_VOCABULARY = 1 << 22
SUM_TOLERANCE = 0.01  # of the probabilities of one position


class BadReference(ValueError):
    """reference.jsonl is not a sane set of reference answers."""


@dataclass(frozen=True)
class Distribution:
    """The likeliest tokens as (id, log probability), likeliest first, and the log of all the rest together."""

    top: tuple[tuple[int, float], ...]
    tail: float


@dataclass(frozen=True)
class Prompt:
    """`tuned[i]` and `base[i]` are the two models' distributions over ids[start + i], given all ids before it."""

    text: str
    ids: tuple[int, ...]
    start: int
    tuned: tuple[Distribution, ...]
    base: tuple[Distribution, ...]


@dataclass(frozen=True)
class Reference:
    """`probes` are (text, ids): how the trained model's tokenizer splits it, special tokens recognised, none added."""

    vocabulary: int
    end: int | None  # the token that ends a text
    probes: tuple[tuple[str, tuple[int, ...]], ...]
    prompts: tuple[Prompt, ...]

    @property
    def positions(self) -> int:
        return sum(len(prompt.tuned) for prompt in self.prompts)


def read(path: Path) -> Reference:
    """Parse and bound the whole file. Raises BadReference, OSError as it comes."""
    if path.stat().st_size > MAX_BYTES:
        raise BadReference(f"larger than {MAX_BYTES} bytes")
    lines = path.read_bytes().splitlines()
    if not 2 <= len(lines) <= MAX_PROMPTS + 1:
        raise BadReference(f"{len(lines)} lines")
    try:
        header, *prompts = [json.loads(line, parse_constant=_no_constant) for line in lines]
        vocabulary = _integer(header["vocab"], 1, MAX_VOCABULARY)
        probes = _items(header["probes"], MAX_PROBES, lambda p: (_text(p["text"]), _ids(p["ids"], vocabulary)))
        end = header.get("eos")
        end = None if end is None else _integer(end, 0, vocabulary - 1)
        return Reference(vocabulary, end, probes, tuple(_prompt(prompt, vocabulary) for prompt in prompts))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadReference(f"{type(error).__name__}: {error}") from error


def _prompt(raw: dict[str, Any], vocabulary: int) -> Prompt:
    ids = _ids(raw["ids"], vocabulary)
    start = _integer(raw["start"], 1, len(ids) - 1)  # an answer has a token at least
    positions = raw["positions"]
    tuned = _items(positions, len(ids), lambda p: _distribution(p["top"], p["tail"], vocabulary))
    base = _items(positions, len(ids), lambda p: _distribution(p["base_top"], p["base_tail"], vocabulary))
    if len(tuned) != len(ids) - start:
        raise ValueError(f"{len(tuned)} positions for ids {start} to {len(ids)}")
    return Prompt(_text(raw["prompt_text"]), ids, start, tuned, base)


def _distribution(top: Any, tail: Any, vocabulary: int) -> Distribution:
    pairs = _items(top, MAX_TOP, lambda pair: (_integer(pair[0], 0, vocabulary - 1), _log(pair[1])))
    found = Distribution(pairs, _log(tail))
    if not pairs or len({token for token, _ in pairs}) != len(pairs):
        raise ValueError("a position without tokens, or with one twice")
    total = math.fsum(math.exp(log) for _, log in pairs) + math.exp(found.tail)
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"probabilities of a position add up to {total:.3f}")
    return found


_T = TypeVar("_T")


def _items(raw: Any, limit: int, build: Callable[[Any], _T]) -> tuple[_T, ...]:
    if not isinstance(raw, list) or len(raw) > limit:
        raise ValueError(f"expected a list of at most {limit}")
    return tuple(build(item) for item in raw)


def _ids(raw: Any, vocabulary: int) -> tuple[int, ...]:
    return _items(raw, MAX_IDS, lambda token: _integer(token, 0, vocabulary - 1))


def _integer(raw: Any, low: int, high: int) -> int:
    if type(raw) is not int or not low <= raw <= high:
        raise ValueError(f"{raw!r} is not an integer from {low} to {high}")
    return raw


def _log(raw: Any) -> float:
    if type(raw) not in (int, float) or not -1e4 <= raw <= 1e-4:
        raise ValueError(f"{raw!r} is not the logarithm of a probability")
    return float(raw)


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or len(raw) > MAX_TEXT:
        raise ValueError(f"expected a text of at most {MAX_TEXT} characters")
    return raw


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
