"""Run as a script in a fenced process of its own: load a GGUF with llama.cpp and answer one request about it.

    python -I llama_child.py < request.json

The only place where C code touches the file. It judges nothing: it reads one JSON object from standard input (`Request`
in child.py), and prints one (`Reply`) as the last line of standard output. Needs nothing of the daemon.
"""

import ctypes
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import llama_cpp as llama
import numpy as np

FLOOR = -100.0  # natural log of a probability too small to matter; JSON has no infinity
BATCH = 512  # tokens decoded at once: each batch reads all weights once, from the disk where memory is short
NO_ROOM = 3  # exit code: it is not the file that is at fault
TOGETHER = 1024  # tokens in the context at once, at least one prompt; of a 13B model without shared heads 0.8 GB

Fed = tuple[int, int, int, bool]  # a token: its id, position and sequence, and whether its logits are wanted


def main() -> None:
    request = json.load(sys.stdin)
    groups = grouped(request["prompts"])
    longest = len(request["greedy_ids"]) + request["greedy_tokens"]
    context = max(longest, *(sum(len(prompt["ids"]) for prompt in group) for group in groups)) + 1
    model = Model(request["gguf"], context=context, sequences=max(map(len, groups)), threads=request["threads"])
    began = time.monotonic()
    reply: dict[str, Any] = {"vocabulary": model.vocabulary, "load_s": began - STARTED}
    reply["tokens"] = [model.tokens(text) for text in request["texts"]]
    reply["stops"] = [model.stops(token) for token in request["ends"]]
    reply["prompts"] = [scores for group in groups for scores in model.score(group)]
    reply["greedy_text"], reply["greedy_ended"] = model.greedy(request["greedy_ids"], request["greedy_tokens"])
    reply["score_s"] = time.monotonic() - began
    print(json.dumps(reply, allow_nan=False), flush=True)


def grouped(prompts: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The prompts in their order, as many at a time as fit into the context together."""
    groups: list[list[dict[str, Any]]] = []
    room = 0
    for prompt in prompts:
        if len(prompt["ids"]) > room:
            groups.append([])
            room = TOGETHER
        groups[-1].append(prompt)
        room -= len(prompt["ids"])
    return groups


class Model:
    """A loaded GGUF on the CPU, with a context of so many tokens that several sequences share.

    The weights are mapped, not read: where memory is short they come from the disk again with every batch.
    """

    def __init__(self, path: str, *, context: int, sequences: int, threads: int) -> None:
        silent = llama.llama_log_callback(lambda level, text, _: sys.stderr.buffer.write(text) if level == 4 else None)
        self._log = silent  # the C side keeps no reference of its own
        llama.llama_log_set(silent, ctypes.c_void_p(0))
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # they would keep a second, repacked copy of the weights in memory
        self._model = llama.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            sys.exit("llama.cpp refuses the file")
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, BATCH
        settings.n_seq_max, settings.kv_unified = sequences, True
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            print("llama.cpp cannot make a context", file=sys.stderr)
            sys.exit(NO_ROOM)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama.llama_vocab_n_tokens(self._vocab))

    def tokens(self, text: str) -> list[int]:
        """Ids of `text`, special tokens recognised and none added."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, True)
        return list(ids[:count])

    def stops(self, token: int) -> bool:
        """Whether the file marks `token` as one that ends an answer."""
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def score(self, group: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """For each id of each prompt from its start on: the model's own choice, and the log probabilities of each
        wanted set of tokens.

        The prompts are sequences of their own, decoded together. A position whose logits are not all finite is only
        that: {"finite": false}.
        """
        self._forget()
        fed = [
            (token, at, number, at >= prompt["start"] - 1)
            for number, prompt in enumerate(group)
            for at, token in enumerate(prompt["ids"][:-1])
        ]
        wanted = iter([sets for prompt in group for sets in prompt["wanted"]])
        found = iter([_position(row, next(wanted)) for row in self._logits(fed)])
        return [[next(found) for _ in prompt["wanted"]] for prompt in group]

    def greedy(self, ids: list[int], limit: int) -> tuple[str, bool]:
        """Text of the likeliest continuation, and whether the model ended it within `limit` tokens."""
        self._forget()
        text = b""
        fed = [(token, at, 0, at == len(ids) - 1) for at, token in enumerate(ids)] if limit else []
        for _ in range(limit):
            (row,) = self._logits(fed)
            token = int(np.argmax(row))
            if self.stops(token):
                return text.decode(errors="replace"), True
            text += self._piece(token)
            fed = [(token, fed[-1][1] + 1, 0, True)]
        return text.decode(errors="replace"), False

    def _forget(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def _logits(self, fed: list[Fed]) -> Iterator[Any]:
        """The wanted logits, in order, each to be used before the next is asked for."""
        for at in range(0, len(fed), BATCH):
            some = fed[at : at + BATCH]
            self._decode(some)
            yield from (self._row(i) for i, (*_, wanted) in enumerate(some) if wanted)

    def _decode(self, fed: list[Fed]) -> None:
        batch = llama.llama_batch_init(len(fed), 0, 1)
        try:
            batch.n_tokens = len(fed)
            for i, (token, position, sequence, wanted) in enumerate(fed):
                batch.token[i], batch.pos[i] = token, position
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = wanted
            if code := llama.llama_decode(self._context, batch):
                sys.exit(f"llama.cpp cannot run the model: code {code}")
        finally:
            llama.llama_batch_free(batch)

    def _row(self, i: int) -> Any:
        pointer = llama.llama_get_logits_ith(self._context, i)
        return np.ctypeslib.as_array(pointer, (self.vocabulary,)).astype(np.float64)

    def _piece(self, token: int) -> bytes:
        buffer = (ctypes.c_char * 256)()
        length = llama.llama_token_to_piece(self._vocab, token, buffer, 256, 0, True)
        return buffer.raw[: max(length, 0)]


def _position(row: Any, sets: list[list[int]]) -> dict[str, Any]:
    if not np.isfinite(row).all():
        return {"finite": False}
    logs = row - row.max()
    logs -= np.log(np.exp(logs).sum())
    scored = []
    for tokens in sets:
        rest = np.ones(len(logs), bool)
        rest[tokens] = False
        scored.append({"logs": np.maximum(logs[tokens], FLOOR).tolist(), "tail": _log_sum(logs[rest])})
    return {"finite": True, "choice": int(row.argmax()), "sets": scored}


def _log_sum(logs: Any) -> float:
    total = float(np.exp(logs).sum())
    return max(float(np.log(total)), FLOOR) if total > 0 else FLOOR


if __name__ == "__main__":
    STARTED = time.monotonic()
    main()
