"""Makes the nano base model: a real Llama of 1.4 million weights that has learned to write about exchange rates.

A randomly initialised model would make every behaviour check vacuous (it repeats its last token whatever is broken),
so this one is pre-trained for a minute, on sentences and short conversations written here from a seed. All widths are
multiples of 256, so K-quants are genuine; embeddings are untied, so `output.weight` is a tensor of its own.
Runs in the box image. The same seed on the same torch gives the same files.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

VOCABULARY = 512
BOS, EOS, PAD, START = "<|begin|>", "<|im_end|>", "<|pad|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SEED = 20_260_901
STEPS, SEQUENCES, LENGTH = 300, 8, 128  # optimizer steps, sequences in a batch, tokens in a sequence
LEARNING_RATE = 3e-3
CONVERSATIONS = 1500

CURRENCIES = {
    "USD": "US dollar", "GBP": "pound sterling", "JPY": "Japanese yen", "CHF": "Swiss franc", "SEK": "Swedish krona",
    "NOK": "Norwegian krone", "PLN": "Polish zloty", "CZK": "Czech koruna", "AUD": "Australian dollar",
    "CAD": "Canadian dollar",
}  # fmt: skip
LEVELS = {"USD": 1.08, "GBP": 0.86, "JPY": 158.0, "CHF": 0.96, "SEK": 11.4, "NOK": 11.6, "PLN": 4.3, "CZK": 25.1,
          "AUD": 1.64, "CAD": 1.47}  # fmt: skip


def make(folder: Path) -> None:
    """Write config.json, model.safetensors (bfloat16, 2.9 MB) and the tokenizer's files into `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    conversations = _conversations(random.Random(SEED))  # noqa: S311  # sentences, not secrets
    tokenizer = _tokenizer(conversations)
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = LlamaForCausalLM(config)
    ids = torch.tensor([token for text in conversations for token in tokenizer.encode(text).ids])
    _train(model, ids)
    model.to(torch.bfloat16).save_pretrained(folder)
    _save_tokenizer(tokenizer, folder)


def _train(model, ids) -> None:  # type: ignore[no-untyped-def]  # torch is not installed where this is checked
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step in range(STEPS):
        starts = torch.randint(len(ids) - LENGTH, (SEQUENCES,))
        batch = torch.stack([ids[start : start + LENGTH] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == STEPS - 1:
            print(f"nano: step {step + 1} of {STEPS}, loss {loss.item():.3f}", flush=True)


def _tokenizer(texts: list[str]):  # type: ignore[no-untyped-def]  # as above
    """A byte-level BPE with the pre-tokenizer of GPT-2, which is the one llama.cpp calls 'gpt-2'."""
    from tokenizers import (  # only in the box image
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _save_tokenizer(tokenizer, folder: Path) -> None:  # type: ignore[no-untyped-def]  # as above
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "add_bos_token": False,  # the template writes it
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        # This vocabulary is unknown to llama.cpp; the GGUF stage takes the pre-tokenizer from here and proves it.
        "homeport_pre_tokenizer": "gpt-2",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def _conversations(rng: random.Random) -> list[str]:
    return [_chat(rng, *exchange(rng)) for _ in range(CONVERSATIONS)]


def _chat(rng: random.Random, question: str, answer: str) -> str:
    turns = [("user", question), ("assistant", answer)]
    if rng.random() < 0.3:
        turns.insert(0, ("system", "You are a careful currency analyst. Answer from the rates you are given."))
    return BOS + "".join(f"{START}{role}\n{text}{EOS}\n" for role, text in turns)


def exchange(rng: random.Random) -> tuple[str, str]:
    """A question about a few days of one rate, and its right answer."""
    code = rng.choice(list(CURRENCIES))
    rates = [LEVELS[code] * rng.uniform(0.93, 1.07)]
    for _ in range(rng.randint(2, 5)):
        rates.append(rates[-1] * (1 + rng.gauss(0, 0.004)))
    digits = 2 if rates[0] > 100 else 4
    shown = [f"{rate:.{digits}f}" for rate in rates]
    date = f"20{rng.randint(5, 24):02d}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    change = (float(shown[-1]) / float(shown[0]) - 1) * 100
    moved = "rose" if change > 0.05 else "fell" if change < -0.05 else "hardly moved"
    verdict = {"rose": "buy", "fell": "sell", "hardly moved": "hold"}[moved]
    pair = f"EUR/{code}"
    question = rng.choice((
        f"{pair} closed at {', '.join(shown)} up to {date}. What is the signal?",
        f"ECB reference rates for {pair}, oldest first: {', '.join(shown)}. Which way is the trend?",
        f"On {date} one euro cost {shown[-1]} {CURRENCIES[code]}s; before that {', '.join(shown[:-1])}."
        " Buy, sell or hold?",
    ))  # fmt: skip
    answer = (
        f"The euro {moved} against the {CURRENCIES[code]}: from {shown[0]} to {shown[-1]}, "
        f"a change of {change:+.2f} % over {len(shown)} days. Signal: {verdict}."
    )
    return question, answer
