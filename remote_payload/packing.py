"""One optimizer step as few rows without padding. The step keeps its sequences, so the training stays the same.

`batch_size` counts sequences. The trainer hands over all of one step (`micro_batches` splits them so that each forward
takes about the same number of tokens); a row holds its sequences side by side, and attention.py keeps them apart.
Everything the forward needs to know of the layout is made here, on the CPU: asking the card would make it wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from remote_payload.tokens import IGNORED

Row = dict[str, Any]  # what the forward takes: tensors, and Python numbers for lengths


@dataclass(frozen=True)
class Piece:
    """Tokens that follow one another in a row, and what is scored of them.

    `prefix` is where in the row the tokens before `ids` lie, if they lie elsewhere. `scored` are triples: place in the
    row of the hidden state that predicts, the predicted token, and where its score goes in the flat result.
    """

    ids: list[int]
    scored: list[tuple[int, int, int]]
    prefix: range = range(0)


def micro_batches(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Which sequences share a forward: as few forwards as `limit` tokens each allow, about equally full.

    A sequence longer than the limit has one for itself. Longest first into the emptiest, so it is deterministic.
    """
    count = max(1, -(-sum(lengths) // limit))
    while True:
        bins: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            emptiest = filled.index(min(filled))
            bins[emptiest].append(i)
            filled[emptiest] += lengths[i]
        if all(tokens <= limit or len(members) == 1 for tokens, members in zip(filled, bins, strict=True)):
            return [sorted(members) for members in bins if members]
        count += 1


@dataclass(frozen=True)
class SftSteps:
    """Collates the samples of one optimizer step: {"input_ids", "labels": of all, "micro_batches": [...]}.

    `labels` at the top are what the trainer counts, to divide the step's loss by its trained tokens.
    """

    limit: int  # tokens a forward

    def __call__(self, samples: list[dict[str, list[int]]]) -> dict[str, Any]:
        bins = micro_batches([len(s["input_ids"]) for s in samples], self.limit)
        rows = [self.micro_batch([samples[i] for i in members]) for members in bins]
        return {
            "input_ids": torch.cat([row["packed"]["input_ids"] for row in rows], 1),
            "labels": torch.cat([row["labels"] for row in rows], 1),
            "micro_batches": rows,
        }

    @staticmethod
    def micro_batch(samples: list[dict[str, list[int]]]) -> Row:
        labels: list[int] = []
        pieces = []
        for sample in samples:
            start, own = len(labels), [IGNORED, *sample["labels"][1:]]
            scored = [(start + i, y, start + i) for i, y in enumerate(own[1:]) if y != IGNORED]
            pieces.append(Piece(sample["input_ids"], scored))
            labels += own
        packed = row(pieces)
        return {"packed": packed, "labels": torch.tensor([labels]), "position_ids": packed["position_ids"]}


@dataclass(frozen=True)
class PairSteps:
    """Collates the pairs of one optimizer step, each micro-batch as TRL's own `padded` collator makes it, and packed.

    The trainer's loss works on the padded form (2 x pairs, longest); the forward runs on the row. A pair's prompt is in
    the row once: the rejected answer reads the prompt of the chosen one, whose states are the same.
    """

    padded: Any
    limit: int

    def __call__(self, pairs: list[dict[str, list[int]]]) -> dict[str, Any]:
        bins = micro_batches([len(p["prompt_ids"] + p["chosen_ids"] + p["rejected_ids"]) for p in pairs], self.limit)
        batches = [self.micro_batch([pairs[i] for i in members], len(pairs)) for members in bins]
        written = [batch["input_ids"][batch["attention_mask"].bool()] for batch in batches]
        return {"input_ids": torch.cat(written)[None], "micro_batches": batches}

    def micro_batch(self, pairs: list[dict[str, list[int]]], step: int) -> Row:
        batch: Row = self.padded(pairs)
        width = batch["input_ids"].shape[1] - 1  # of the result: one score for every token but the first
        pieces, start = [], 0
        for i, pair in enumerate(pairs):
            prompt, chosen, rejected = pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]
            before = len(prompt)
            last = range(start, start + before)[-1:]  # of the prompt; it predicts the first token of either answer
            other = start + before + len(chosen)  # where the rejected answer starts
            places = [*last, *range(start + before, other - 1)]
            pieces.append(Piece(prompt + chosen, scores(places, chosen, i * width + before)))
            places = [*last, *range(other, other + len(rejected) - 1)]
            line = (len(pairs) + i) * width
            pieces.append(Piece(rejected, scores(places, rejected, line + before), range(start, start + before)))
            start = other + len(rejected)
        return batch | {"packed": row(pieces), "share": len(pairs) / step}


def scores(places: list[int], answer: list[int], column: int) -> list[tuple[int, int, int]]:
    """The triples of an answer whose first token's score would be followed by that at `column`. Without a prompt
    nothing predicts the first token, and it has none."""
    places = places[: len(answer)]
    skipped = len(answer) - len(places)
    return [
        (place, y, column - 1 + skipped + k) for k, (place, y) in enumerate(zip(places, answer[skipped:], strict=True))
    ]


def row(pieces: Sequence[Piece]) -> Row:
    """The row of `pieces`, (1, T), as the keyword arguments that the model and its head take."""
    ids, positions, keys, scored = [], [], [], []
    q_bounds, k_bounds = [0], [0]
    for piece in filter(lambda piece: piece.ids, pieces):
        before, start = len(piece.prefix), len(ids)
        ids += piece.ids
        positions += range(before, before + len(piece.ids))
        keys += [*piece.prefix, *range(start, len(ids))]
        q_bounds.append(len(ids))
        k_bounds.append(len(keys))
        scored += piece.scored
    places, targets, results = zip(*scored, strict=True) if scored else ((), (), ())
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "cu_seq_lens_q": torch.tensor(q_bounds, dtype=torch.int32),
        "cu_seq_lens_k": torch.tensor(k_bounds, dtype=torch.int32),
        "max_length_q": max(b - a for a, b in pairwise(q_bounds)),
        "max_length_k": max(b - a for a, b in pairwise(k_bounds)),
        "key_index": torch.tensor(keys) if len(keys) > len(ids) else None,
        "scored_places": torch.tensor(places, dtype=torch.long),
        "scored_tokens": torch.tensor(targets, dtype=torch.long),
        "scored_results": torch.tensor(results, dtype=torch.long),
    }
