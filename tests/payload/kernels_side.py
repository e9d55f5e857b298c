"""The box's side of test_speed.py for the kernels' place in a model's module, which other models of its kind share."""

import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from remote_payload import kernels

kernels.triton = object()  # as where there are cards; no kernel is run

config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_attention_heads=4, num_hidden_layers=2)
plain, ids = LlamaForCausalLM(config).eval(), torch.arange(12).view(2, 6)
with torch.no_grad():
    before = plain(ids).logits
    kernels.apply(LlamaForCausalLM(config))
    after = plain(ids).logits
first = modeling_llama.apply_rotary_pos_emb
kernels.apply(LlamaForCausalLM(config))
again = modeling_llama.apply_rotary_pos_emb
nested = isinstance(again.plain, kernels.Rotate)
print("found", json.dumps({"same": torch.equal(before, after), "kept": again is first, "nested": nested}))
