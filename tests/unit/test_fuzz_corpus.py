"""The fuzzer's corpus, replayed: no input that once broke a reader, or came near, does so again."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, feed

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    """Every kept input is read or refused; each target has at least one that is read to its end."""
    files = sorted((CORPUS / name).iterdir())

    for file in files:
        feed(name, file.read_bytes())
    assert any(_is_read(name, file) for file in files)


def _is_read(name: str, file: Path) -> bool:
    try:
        TARGETS[name].read(file.read_bytes())
    except TARGETS[name].refuses:
        return False
    return True


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.floats(0, 1), new=st.binary(max_size=8), drop=st.integers(0, 8), which=st.integers(0, 1 << 16))
def test_bytes_changed(name: str, at: float, new: bytes, drop: int, which: int) -> None:
    """An input of the corpus with a few bytes replaced."""
    files = sorted((CORPUS / name).iterdir())
    content = files[which % len(files)].read_bytes()
    place = int(at * len(content))

    feed(name, content[:place] + new + content[place + drop :])
