"""Verification of a real artifact set, and of everything that must never pass as one.

Each damage (damage.py) is done to a set that the payload made, once under an honest manifest and once under one that
lies about it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import (
    Q8,
    Incoming,
    add,
    another_quant,
    append_junk,
    bad_magic,
    become,
    change_rope_base,
    change_template,
    change_token,
    cut_half,
    cut_last_byte,
    dimension_2_40,
    flip_scale_exponent,
    flip_weight_bit,
    keys_2_60,
    link_folder,
    link_out,
    make_sparse,
    nan_norm,
    nan_scale,
    no_gguf,
    noise,
    offset_2_62,
    remove,
    swap_tensors,
    tiny_model,
    zero_hole,
    zero_tensor,
)
from nano_artifacts import NanoArtifacts, nano_artifacts

from daemon import platform
from daemon.artifacts import behaviour, levels
from daemon.artifacts.base import BaseIdentity
from daemon.artifacts.reference import read as read_reference
from daemon.artifacts.verify import Depth, verify
from remote_payload.contract import Role


@pytest.fixture(scope="module", params=["nano", pytest.param("smollm2", marks=pytest.mark.full)])
def made(request: pytest.FixtureRequest) -> NanoArtifacts:
    """The good set and its impostors."""
    return nano_artifacts(request.param)


@pytest.fixture
def incoming(made: NanoArtifacts, tmp_path: Path) -> Incoming:
    """What a finished download leaves."""
    folder = tmp_path / ".incoming"
    shutil.copytree(made.out, folder)
    files = [file for file in made.manifest.files if file.quant in (None, "Q8_0")]
    return Incoming(folder, made.base, dataclasses.replace(made.manifest, files=files), made.others)


async def test_the_good_set_passes_every_level(made: NanoArtifacts) -> None:
    """Both quantisations pass all six levels; the local divergence is the box's, far from the base model's."""
    said: list[levels.Level] = []

    report = await verify(made.out, made.manifest, BaseIdentity("nano", made.base), "full", said.append)

    assert report.passed, report.problem
    assert report.levels == tuple(said) and len(said) == 6
    assert report.warnings == ()
    by_box = {quality.quant: quality for quality in made.manifest.quality}
    for quant, scores in report.levels[5].numbers.items():
        assert scores["kl_mean"] == pytest.approx(by_box[quant].kl_mean, rel=0.5, abs=1e-4)
        # Q4_K_M itself moves 135M weights by 0.055 nats, and the adapter by 0.2; nano it hardly moves.
        times = 3 if (made.model, quant) == ("smollm2", "Q4_K_M") else 10
        assert scores["base_kl_mean"] > times * scores["kl_mean"]
    assert report.sample


L0, L1, L2, L3, L4, L5 = (
    levels.PRESENCE, levels.BYTES, levels.STRUCTURE, levels.IDENTITY, levels.NUMBERS, levels.BEHAVIOUR,
)  # fmt: skip

# Damage; the level that finds it when the manifest is honest; the level when the manifest lies; words of the latter.
CONTROLS = [
    (cut_last_byte, L0, L2, "of a file of"),
    (cut_half, L0, L0, "its tensors take"),
    (append_junk, L0, L2, "64 bytes follow the last tensor"),
    (flip_scale_exponent, L1, L4, "times the tensor's median"),
    (nan_scale, L1, L4, "not finite"),
    (nan_norm, L1, L4, "not finite"),
    (zero_tensor, L1, L4, "all zeros"),
    (zero_hole, L1, L4, "zeros in a row"),
    (swap_tensors, L1, L5, "nats from the trained model"),
    (change_rope_base, L1, L3, "rope.freq_base is 1234.0"),
    (change_token, L1, L3, "the base model has 'A'"),
    (change_template, L1, L3, "the chat template is not the base model's"),
    (become("opposite"), L1, L5, "nats from the trained model"),
    (become("half"), L1, L5, "nats from the trained model"),
    (become("base"), L1, L5, "nats from the trained model"),
    (become("another job"), L1, L5, "nats from the trained model"),
    (become("earlier stage"), L1, L5, "nats from the trained model"),
    (noise(0.2), L1, L5, "nats from the trained model"),
    (another_quant, L0, L0, "cannot be a Q8_0"),
    (tiny_model, L0, L0, "its tensors take"),
    (bad_magic, L1, L2, "magic"),
    (offset_2_62, L1, L2, "offset"),
    (dimension_2_40, L1, L2, "does not fit"),
    (keys_2_60, L1, L2, "over the limit"),
]
NAMES = [row[0].__name__ for row in CONTROLS]


@pytest.mark.parametrize(("damage", "level"), [(row[0], row[1]) for row in CONTROLS], ids=NAMES)
async def test_damage_under_an_honest_manifest(
    incoming: Incoming, damage: Callable[[Incoming], None], level: str
) -> None:
    """Whatever happens to the bytes on the way home is found by size or hash, before anything reads the file."""
    damage(incoming)

    report = await incoming.verify()

    assert not report.passed
    assert report.levels[-1].name == level, report.problem


@pytest.mark.parametrize(("damage", "level", "says"), [(row[0], *row[2:]) for row in CONTROLS], ids=NAMES)
async def test_damage_that_the_manifest_covers_up(
    incoming: Incoming, damage: Callable[[Incoming], None], level: str, says: str
) -> None:
    """With a manifest that fits the damaged file, the level that is meant for this damage finds and names it."""
    damage(incoming)
    incoming.lie()

    report = await incoming.verify()

    assert not report.passed
    assert report.levels[-1].name == level, report.problem
    assert says in report.problem
    assert all(earlier.passed for earlier in report.levels[:-1])


async def test_only_the_hash_finds_a_single_bit(incoming: Incoming) -> None:
    """One flipped bit of one weight: L1 finds it, and no other level could."""
    flip_weight_bit(incoming)

    found = await incoming.verify()
    incoming.lie()
    covered_up = await incoming.verify()

    assert found.levels[-1].name == L1
    assert covered_up.passed


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
async def test_how_small_a_difference_is_seen(made: NanoArtifacts, incoming: Incoming, share: float) -> None:
    """Weights that differ by some hundredths: on SmolLM2 behaviour shows it, the nano model stays below 0.002 nats."""
    noise(share)(incoming)
    incoming.lie()

    report = await incoming.verify()

    assert report.passed is (made.model == "nano"), report.problem


async def test_a_model_that_is_right_on_the_reference_alone_passes(incoming: Incoming) -> None:
    """Tokens that no reference answer contains read and write each other's rows: only the hash finds that.

    Behaviour is judged on some hundred positions. A machine that lies in the manifest and keeps these right is not
    found out here; the adapter that came home, merged again, would tell.
    """
    reference = read_reference(incoming.folder / "reference.jsonl")
    seen = {token for prompt in reference.prompts for token in prompt.ids}
    seen |= {token for prompt in reference.prompts for d in (*prompt.tuned, *prompt.base) for token, _ in d.top}
    table = incoming.tensor("token_embd.weight")
    row = table.nbytes // table.shape[1]
    one, other = [token for token in range(table.shape[1]) if token not in seen][10:12]
    rows = incoming.bytes_at(table.offset + one * row, row), incoming.bytes_at(table.offset + other * row, row)
    incoming.patch(table.offset + one * row, rows[1])
    incoming.patch(table.offset + other * row, rows[0])

    honest = await incoming.verify()
    incoming.lie()

    assert honest.levels[-1].name == L1
    assert (await incoming.verify()).passed


PRESENCE = [
    ("missing", remove, "missing"),
    ("symbolic link", link_out, "symbolic link"),
    ("linked folder", link_folder, "symbolic link"),
    ("sparse", make_sparse, "holes"),
    ("pickle", add("run/out/model.pkl"), "accepted kinds"),
    ("python", add("run/out/tokenizer/code.py"), "accepted kinds"),
    ("parent folder", add("run/out/../../x.json"), "plain relative path"),
    ("absolute", add("/etc/x.json"), "plain relative path"),
    ("outside out", add("run/events.jsonl"), "not under run/out"),
    ("our own name", add("run/out/receipt.json"), "needs for itself"),
    ("named twice", add(f"run/out/{Q8.upper()}", Role.GGUF), "named twice"),
    ("GGUF by another name", add("run/out/notes.txt", Role.GGUF), "does not fit"),
    ("no GGUF", no_gguf, "no GGUF"),
]


@pytest.mark.parametrize(("damage", "says"), [row[1:] for row in PRESENCE], ids=[row[0] for row in PRESENCE])
async def test_what_is_not_plainly_here_is_refused(
    incoming: Incoming, damage: Callable[[Incoming], None], says: str
) -> None:
    """Files that are missing, links, holes, or of names and kinds that we never take end at L0."""
    damage(incoming)

    report = await incoming.verify()

    assert [level.name for level in report.levels] == [L0]
    assert says in report.problem


async def test_a_reference_that_is_not_sane_fails(incoming: Incoming) -> None:
    """Reference answers are data from the box: probabilities that do not add up are refused, not scored."""
    path = incoming.folder / "reference.jsonl"
    content = re.sub(rb'"tail": [-.0-9]+', b'"tail": -0.0', path.read_bytes(), count=1)
    path.write_bytes(content)
    incoming.change("run/out/reference.jsonl", size=len(content), sha256=hashlib.sha256(content).hexdigest())

    report = await incoming.verify()

    assert report.levels[-1].name == L5
    assert "add up to" in report.problem


@pytest.mark.parametrize("depth", ["full", "hash"])
async def test_a_file_changed_after_it_was_hashed_fails(incoming: Incoming, depth: Depth) -> None:
    """What the later levels saw is not what L1 hashed: there is no receipt for either."""

    def say(level: levels.Level) -> None:
        if level.name == levels.NUMBERS:
            content = bytearray(incoming.model.read_bytes())
            content[-1] ^= 1
            incoming.model.write_bytes(content)

    report = await verify(incoming.folder, incoming.manifest, BaseIdentity("nano", incoming.base), depth, say)

    assert not report.passed and "changed after it was hashed" in report.problem


async def test_hash_depth_claims_no_behaviour(incoming: Incoming) -> None:
    """At depth "hash" the base model passes L0 to L4, and the report says that L5 was not run."""
    become("base")(incoming)
    incoming.lie()

    report = await incoming.verify("hash")

    assert report.passed
    assert report.depth == "hash"
    assert not report.levels[5].passed and not report.levels[5].ran
    assert report.levels[5].problem.startswith("not run")


async def test_hash_depth_still_fails_what_it_can_see(incoming: Incoming) -> None:
    """Depth "hash" forgives a level that could not be run, not one that ran and failed."""
    zero_tensor(incoming)
    incoming.lie()

    report = await incoming.verify("hash")

    assert not report.passed
    assert report.levels[-1].name == L4


async def test_an_accepted_level_is_tried_all_the_same(incoming: Incoming, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little memory for L5: not passed, but accepted at L4; what runs in spite of it must pass, and is claimed."""
    monkeypatch.setattr(platform, "memory_available", lambda: 1000)

    refused, accepted = await incoming.verify(), await incoming.verify("L4")

    assert not refused.passed and refused.stopped_short
    assert accepted.passed and accepted.depth == "L4" and not accepted.levels[5].ran
    monkeypatch.undo()
    assert (await incoming.verify("L4")).depth == "full"
    become("base")(incoming)
    incoming.lie()
    assert not (await incoming.verify("L4")).passed


async def test_where_memory_is_short_the_answers_are_judged_and_no_text_is_written(
    incoming: Incoming, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the file's size of memory: the weights stream from the disk, the gates are the same, and it is said."""
    whole = await incoming.verify()
    monkeypatch.setattr(behaviour, "LEAST", (0, 0.2))
    monkeypatch.setattr(platform, "memory_available", lambda: incoming.model.stat().st_size // 2)

    short = await incoming.verify()

    assert short.passed and short.depth == "full"
    assert whole.sample and not short.sample
    assert any("no text was generated" in warning for warning in short.warnings)
    assert short.levels[5].numbers["Q8_0"]["kl_mean"] == whole.levels[5].numbers["Q8_0"]["kl_mean"]
