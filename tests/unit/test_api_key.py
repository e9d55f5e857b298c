"""The market's key, as people and their shells write it down."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.errors import CredentialsRefused
from daemon.settings import Paths, api_key


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(config=tmp_path, state=tmp_path, models=tmp_path)


def written(paths: Paths, content: bytes) -> str:
    paths.key_file.touch(mode=0o600)
    paths.key_file.write_bytes(content)
    return api_key(paths, {"HOME": str(paths.config)}).value


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "utf-8-sig", "utf-16"])
def test_the_key_is_read_in_the_encodings_of_editors_and_shells(paths: Paths, encoding: str) -> None:
    """With or without a byte order mark, and with the line's end."""
    assert written(paths, "abc123\r\n".encode(encoding)) == "abc123"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"\xff\xfea", b"\x80\x81", "schl\u00fcssel".encode(), b"two words", b"a\nb", b"a\0"]
)
def test_what_is_no_key_is_refused(paths: Paths, content: bytes) -> None:
    """Before it is sent anywhere, by the name of its file and without its content."""
    with pytest.raises(CredentialsRefused, match="vast_api_key holds no key") as caught:
        written(paths, content)

    assert "words" not in str(caught.value)


def test_a_variable_that_is_no_key_is_refused(paths: Paths) -> None:
    """A line break in it would end the header."""
    with pytest.raises(CredentialsRefused, match="VAST_API_KEY holds no key"):
        api_key(paths, {"VAST_API_KEY": "abc\ndef"})
