"""The box's side of test_smollm2.py: both ways on the box's own model and rows, as speed_side.py compares them."""

from pathlib import Path

from remote_payload import tokens
from remote_payload.contract import Stage
from remote_payload.layout import Layout
from remote_payload.rows import read_dpo, read_sft
from remote_payload.tokenizer import load_tokenizer
from tests.payload.speed_side import BATCH, STEPS, compare

layout = Layout(Path())
job = layout.read_settled()
tokenizer = load_tokenizer(layout)
samples = tokens.samples(tokenizer, read_sft(layout, job.sft_data).rows[: STEPS * BATCH], job)
pairs = tokens.pairs(tokenizer, read_dpo(layout, job.dpo_data).rows[: STEPS * BATCH], job)
for stage, rows, longest in (
    (Stage.SFT, samples, max(len(sample.ids) for sample in samples)),
    (Stage.DPO, pairs, max(len(pair.prompt + pair.chosen + pair.rejected) for pair in pairs)),
):
    compare(stage, rows, longest, limit=3 * longest)
