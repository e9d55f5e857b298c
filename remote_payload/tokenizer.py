"""The base model's tokenizer as the training uses it: same ids, the training variant of the chat template."""

from __future__ import annotations

import json
from typing import Any

from transformers import AutoTokenizer

from remote_payload import templates
from remote_payload.layout import Layout


def load_tokenizer(layout: Layout) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(layout.model, local_files_only=True)
    tokenizer.chat_template = templates.for_training(tokenizer)
    tokenizer.pad_token = padding(tokenizer, end_ids(layout, tokenizer))
    tokenizer.padding_side = "right"
    return tokenizer


def padding(tokenizer: Any, ends: set[int]) -> str:
    """The token to pad with: the tokenizer's own unless it also ends a text, else another special one it has.

    Never a new token, which would enlarge the embeddings and make another vocabulary of the GGUF. Where there is
    nothing else the end-of-text token pads too: labels come from the data, so that it is still trained.
    """
    taken = ends | {tokenizer.bos_token_id}
    if tokenizer.pad_token is not None and tokenizer.pad_token_id not in taken:
        return str(tokenizer.pad_token)
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = [content for i, content in sorted(special.items()) if i not in taken and "pad" in content.lower()]
    return str((named or [tokenizer.unk_token or tokenizer.eos_token])[0])


def end_ids(layout: Layout, tokenizer: Any) -> set[int]:
    """Every token the model stops at: the tokenizer's own and those of generation_config.json (some chat models
    end a turn with another token than a text)."""
    ends = {tokenizer.eos_token_id}
    configuration = layout.model / "generation_config.json"
    if configuration.exists():
        more = json.loads(configuration.read_text()).get("eos_token_id")
        ends |= set(more) if isinstance(more, list) else {more}
    return ends - {None}
