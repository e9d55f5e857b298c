"""What the cards are worth: right products at the rate of their kind, sound and free memory, reach to each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from remote_payload.check import Check
from remote_payload.contract import Exit
from remote_payload.ranks import WAYS, Ranks

DRIVER = Path("/proc/driver/nvidia/version")
RIGHT = 2048  # rows and columns of the product whose result is checked; a second on one CPU core
FAST = 8192  # of the one that is timed
ROUNDS = 10

# Sustained bf16 TFLOP/s of such a product, by the beginning of the card's name, longest first. Measured for H100 SXM
# and H200 (778 to 798 on several machines); the others are 0.8 of the maker's dense rate.
MEDIAN_TFLOPS = {
    "NVIDIA H100 PCIe": 600.0, "NVIDIA H100 NVL": 670.0, "NVIDIA H100": 780.0, "NVIDIA H200": 780.0,
    "NVIDIA A100": 250.0, "NVIDIA L40S": 290.0, "NVIDIA GeForce RTX 4090": 132.0, "NVIDIA GeForce RTX 3090": 57.0,
}  # fmt: skip
LEAST_SHARE = 0.6  # below it the card is throttled, or somebody else computes on it
LEAST_FREE = 0.9  # of a card's memory; below it somebody else is there
LENGTHS, HEADS, SHARED, WIDTH = (37, 128, 91), 8, 2, 64  # of the sequences whose attention is checked
APART = {"cuda": 0.02, "cpu": 1e-5}  # of bf16's own rounding, and of fp32's
EXCHANGE_S = 20.0  # for the ranks to start, meet and add up; a broken link shows as a hang
ECC = ("nvidia-smi", "--query-gpu=index,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader,nounits")


def checks() -> Iterator[Check]:
    """One for each property of each card; of a machine without a driver only that its CPU multiplies rightly."""
    count = torch.cuda.device_count()
    if DRIVER.exists():
        yield Check("cards", count > 0, f"a driver is loaded and torch sees {count} cards")
    for device in [f"cuda:{i}" for i in range(count)] or ["cpu"]:
        yield product_check(device)
    if count:
        yield attention_check("cuda")
    for i in range(count):
        yield rate_check(f"matmul rate cuda:{i}", torch.cuda.get_device_name(i), measured_tflops(i))
        yield memory_check(i, *torch.cuda.mem_get_info(i))
    if count:
        yield ecc_check(ecc_report())
    if count > 1:
        yield exchange_check(count)


def product_check(device: str) -> Check:
    ones = torch.ones(RIGHT, RIGHT, device=device)
    return Check(f"matmul {device}", bool(((ones @ ones) == RIGHT).all()), f"{RIGHT} x {RIGHT}")


def attention_check(device: str) -> Check:
    """Packed attention, forward and backward, against the definition of attention in fp32, sequence by sequence."""
    from remote_payload.attention import attend

    kind = torch.bfloat16 if device == "cuda" else torch.float32
    draw = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    made = [torch.randn(1, heads, total, WIDTH, generator=draw).to(kind) for heads in (HEADS, SHARED, SHARED, HEADS)]
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    *inputs, upstream = (tensor.to(device).requires_grad_() for tensor in made)
    ends = bounds.to(device, torch.int32)
    told = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": max(LENGTHS), "max_length_k": max(LENGTHS)}
    out, _ = attend(None, *inputs, None, scaling=WIDTH**-0.5, **told)
    found = [out, *torch.autograd.grad(out, inputs, upstream.detach().transpose(1, 2))]

    q, k, v = (tensor.float().requires_grad_() for tensor in made[:3])
    scores = q @ k.repeat_interleave(HEADS // SHARED, 1).mT * WIDTH**-0.5
    sequence = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    seen = (sequence[:, None] == sequence).tril()
    read = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(HEADS // SHARED, 1)
    right = [read.transpose(1, 2), *torch.autograd.grad(read, (q, k, v), made[3].float())]
    pairs = [(ours.detach().float().cpu(), theirs.detach()) for ours, theirs in zip(found, right, strict=True)]
    off = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs)
    return Check("attention", off <= APART[device], f"off by {off:.1e}, {APART[device]:g} is rounding")


def measured_tflops(card: int) -> float:
    a = torch.randn(FAST, FAST, device=f"cuda:{card}", dtype=torch.bfloat16)
    for _ in range(3):  # clocks rise, and the library chooses its kernel
        a @ a
    torch.cuda.synchronize(card)
    began = time.perf_counter()
    for _ in range(ROUNDS):
        a @ a
    torch.cuda.synchronize(card)
    return 2 * FAST**3 * ROUNDS / (time.perf_counter() - began) / 1e12


def rate_check(name: str, card: str, tflops: float) -> Check:
    median = next((rate for begins, rate in MEDIAN_TFLOPS.items() if card.startswith(begins)), None)
    if median is None:
        return Check(name, True, f"{tflops:.0f} TFLOP/s; what a {card} usually reaches is not known")
    return Check(name, tflops >= LEAST_SHARE * median, f"{tflops:.0f} TFLOP/s, a {card} usually reaches {median:.0f}")


def memory_check(card: int, free: int, total: int) -> Check:
    return Check(f"memory cuda:{card}", free >= LEAST_FREE * total, f"{free >> 20} of {total >> 20} MiB are free")


def ecc_report() -> str:
    """What nvidia-smi says; empty when it does not answer."""
    try:
        return subprocess.run(ECC, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        print(f"preflight: nvidia-smi did not answer: {error}", file=sys.stderr)
        return ""


def ecc_check(report: str) -> Check:
    """Cards without ECC say a word instead of a number."""
    rows = [[word.strip() for word in line.split(",")] for line in report.splitlines()]
    bad = [f"cuda:{card} has {count}" for card, count in rows if count.isdigit() and int(count) > 0]
    return Check("ecc", not bad, "; ".join(bad) or "no uncorrected errors")


def exchange_check(count: int) -> Check:
    """The first way in which `count` ranks add up rightly."""
    said = []
    for way in WAYS:
        how = " with " + " ".join(f"{name}={value}" for name, value in way.items()) if way else ""
        with tempfile.TemporaryFile() as log:
            command = [os.environ.get("HOMEPORT_PYTHON") or sys.executable, "-m", "remote_payload.exchange"]
            code = Ranks.start(command, count, {**os.environ, **way}, log, []).finish(EXCHANGE_S)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
        if code == Exit.OK:
            rate = next(json.loads(line)["gb_s"] for line in lines if line.startswith("{"))
            return Check("all-reduce", True, f"{rate} GB/s over {count} ranks{how}")
        ended = f"took over {EXCHANGE_S:g} s" if code is None else f"ended with {code}"
        said.append(f"{count} ranks{how} {ended}: {lines[-1] if lines else 'nothing was said'}")
    return Check("all-reduce", False, "; ".join(said))
