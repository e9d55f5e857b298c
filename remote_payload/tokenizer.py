"""The base model's tokenizer as the training uses it: same ids, the training variant of the chat template."""

from __future__ import annotations

import json
from typing import Any

from transformers import AutoTokenizer

from remote_payload import templates
from remote_payload.layout import Layout


def load_tokenizer(layout: Layout) -> Any:
    """Padding falls back to the end-of-text token: labels come from the data, so that token is still trained."""
    tokenizer = AutoTokenizer.from_pretrained(layout.model, local_files_only=True)
    tokenizer.chat_template = templates.for_training(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_ids(layout: Layout, tokenizer: Any) -> set[int]:
    """Every token the model stops at: the tokenizer's own and those of generation_config.json (some chat models
    end a turn with another token than a text)."""
    ends = {tokenizer.eos_token_id}
    configuration = layout.model / "generation_config.json"
    if configuration.exists():
        more = json.loads(configuration.read_text()).get("eos_token_id")
        ends |= set(more) if isinstance(more, list) else {more}
    return ends - {None}
