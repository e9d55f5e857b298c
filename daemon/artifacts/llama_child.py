"""Run as a script in a fenced process of its own: load a GGUF with llama.cpp and answer one request about it.

    python -I llama_child.py < request.json

The only place where C code touches the file. It judges nothing: it reads one JSON object from standard input (`Request`
in child.py), and prints one (`Reply`) as the last line of standard output. Needs nothing of the daemon.
"""

import ctypes
import json
import sys
import time
from typing import Any

import llama_cpp as llama
import numpy as np

FLOOR = -100.0  # natural log of a probability too small to matter; JSON has no infinity
BATCH = 512  # tokens decoded at once


def main() -> None:
    request = json.load(sys.stdin)
    model = Model(request["gguf"], context=request["context"], threads=request["threads"])
    began = time.monotonic()
    reply: dict[str, Any] = {"vocabulary": model.vocabulary, "load_s": began - STARTED}
    reply["tokens"] = [model.tokens(text) for text in request["texts"]]
    reply["prompts"] = [model.score(prompt["ids"], prompt["start"], prompt["wanted"]) for prompt in request["prompts"]]
    reply["greedy_text"], reply["greedy_ended"] = model.greedy(request["greedy_ids"], request["greedy_tokens"])
    reply["score_s"] = time.monotonic() - began
    print(json.dumps(reply, allow_nan=False), flush=True)


class Model:
    """A loaded GGUF with one sequence of context, on the CPU."""

    def __init__(self, path: str, *, context: int, threads: int) -> None:
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
        settings.n_ctx, settings.n_batch = context, BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama.llama_init_from_model(self._model, settings)
        if not self._context:
            sys.exit("llama.cpp cannot make a context")
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama.llama_vocab_n_tokens(self._vocab))

    def tokens(self, text: str) -> list[int]:
        """Ids of `text`, special tokens recognised and none added."""
        raw = text.encode()
        room = len(raw) + 8
        ids = (llama.llama_token * room)()
        count = llama.llama_tokenize(self._vocab, raw, len(raw), ids, room, False, True)
        return list(ids[:count])

    def score(self, ids: list[int], start: int, wanted: list[list[list[int]]]) -> list[dict[str, Any]]:
        """For each id from `start` on: the model's own choice, and its log probabilities of each wanted set of tokens.

        A position whose logits are not all finite is only that: {"finite": false}.
        """
        rows = self._logits(ids[:-1], first=start - 1)
        return [_position(row, sets) for row, sets in zip(rows, wanted, strict=True)]

    def greedy(self, ids: list[int], limit: int) -> tuple[str, bool]:
        """Text of the likeliest continuation, and whether the model ended it within `limit` tokens."""
        text = b""
        (row,) = self._logits(ids, first=len(ids) - 1)
        for at in range(len(ids), len(ids) + limit):
            token = int(np.argmax(row))
            if llama.llama_vocab_is_eog(self._vocab, token):
                return text.decode(errors="replace"), True
            text += self._piece(token)
            row = self._decode([token], at, first=at)[0]
        return text.decode(errors="replace"), False

    def _logits(self, ids: list[int], first: int) -> list[Any]:
        """Logits after ids[first] and every later one, from an empty context."""
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        rows: list[Any] = []
        for at in range(0, len(ids), BATCH):
            rows += self._decode(ids[at : at + BATCH], at, first)
        return rows

    def _decode(self, ids: list[int], at: int, first: int) -> list[Any]:
        """Feed `ids`, which stand at positions `at` onwards; logits of those at `first` or later."""
        batch = llama.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, at + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = at + i >= first
            if code := llama.llama_decode(self._context, batch):
                sys.exit(f"llama.cpp cannot run the model: code {code}")
        finally:
            llama.llama_batch_free(batch)
        return [self._row(i) for i in range(len(ids)) if at + i >= first]

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
