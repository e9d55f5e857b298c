"""Rules of the box code that no behaviour would show until it is too late."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import asyncssh
import pytest

import daemon.box
from daemon.box import challenge
from daemon.box.keys import own_key
from remote_payload.contract import ContractError, Phase, Status, dump, load


def test_host_keys_are_always_checked() -> None:
    """asyncssh takes known_hosts=None for 'check nothing', silently: it is written nowhere, and nor is its absence."""
    for path in Path(daemon.box.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert not re.search(r"known_hosts\s*=\s*None", text), path
        if "asyncssh.connect(" in text:
            assert "known_hosts=(pinned, [], [])" in text, path


def test_our_key_is_made_once_and_readable_by_us_alone(tmp_path: Path) -> None:
    """The second call loads what the first one made."""
    path = tmp_path / "state" / "id_ed25519"

    first = own_key(path)

    assert own_key(path) == first
    assert first.startswith("ssh-ed25519 ")
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_key_is_told_not_replaced(tmp_path: Path) -> None:
    """Every rented box knows only the old key: it is never overwritten."""
    path = tmp_path / "id_ed25519"
    path.write_text("garbage")

    with pytest.raises(asyncssh.KeyImportError):
        own_key(path)

    assert path.read_text() == "garbage"


def test_an_answer_is_bound_to_nonce_key_and_secret() -> None:
    """Replaying an answer for another nonce or another host key proves nothing."""
    import hashlib
    import hmac

    asked = challenge.question("nonce", "ssh-ed25519 AAAA")
    answer = hmac.new(b"secret", asked.encode(), hashlib.sha256).hexdigest()

    assert challenge.is_right(answer + "\n", "secret", asked)
    assert not challenge.is_right(answer, "secret", challenge.question("other", "ssh-ed25519 AAAA"))
    assert not challenge.is_right(answer, "secret", challenge.question("nonce", "ssh-ed25519 BBBB"))
    assert not challenge.is_right(answer, "another", asked)
    assert not challenge.is_right("", "secret", asked)


@pytest.mark.parametrize(("said", "instead"), [('"boot"', '"\\ud800"'), ('"pid":1', f'"pid":1,"step":{10**400}')])
def test_what_no_database_takes_is_refused(said: str, instead: str) -> None:
    """Half a character has no bytes, and no number is that large: it would end the job with an error of ours."""
    text = dump(Status("j", 1, Phase.RUNNING, None, None, 0.0, "boot", 1)).replace(',"step":0', "")

    with pytest.raises(ContractError):
        load(Status, text.replace(said, instead))
