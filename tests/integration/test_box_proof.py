"""Who answers: the challenge, the pin, and what is sent before they pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from boxes import loopback_box

from daemon.box.box import Box
from daemon.box.keys import own_key
from daemon.errors import AccessDenied, HostKeyChanged, LinkLost


async def test_a_box_that_knows_the_secret_is_proven_and_its_paths_become_absolute(tmp_path: Path) -> None:
    """The right secret pins the key that was on the wire and turns root and python into absolute paths."""
    async with loopback_box(tmp_path) as there:
        (there.home / "bin").mkdir()
        (there.home / "bin" / "python").symlink_to(Path(there.address().python))
        box = Box(there.address(python="bin/python"), there.key)

        proven = await box.prove()

        assert proven.host_key == there.host_key
        assert proven.root == str(there.root)
        assert proven.python == str(there.home / "bin" / "python")
        assert box.address.host_key == there.host_key
        await box.aclose()


async def test_a_box_with_another_secret_is_refused_and_told_nothing(tmp_path: Path) -> None:
    """Whoever answers without the secret gets HostKeyChanged, and nothing of ours was made there."""
    async with loopback_box(tmp_path, secret="guessed") as there:
        box = Box(there.address(), there.key)

        with pytest.raises(HostKeyChanged):
            await box.prove()
        with pytest.raises(HostKeyChanged):
            await box.run("true")

        assert not there.root.exists()


async def test_a_box_whose_start_script_has_not_run_is_not_ready(tmp_path: Path) -> None:
    """A missing secret is no proof of fraud: try again later."""
    async with loopback_box(tmp_path, secret=None) as there:
        with pytest.raises(LinkLost, match="start script"):
            await Box(there.address(), there.key).prove()


async def test_another_key_than_the_pinned_one_is_refused_in_the_key_exchange(tmp_path: Path) -> None:
    """A changed host key stops every call, although the machine behind it knows the secret."""
    async with loopback_box(tmp_path) as there:
        other = " ".join(own_key(tmp_path / "other").split()[:2])
        box = Box(replace(there.address(pinned=other), root=str(there.root)), there.key)

        with pytest.raises(HostKeyChanged, match="pinned"):
            await box.prove()
        with pytest.raises(HostKeyChanged, match="pinned"):
            await box.run("true")

        assert not there.root.exists()


async def test_a_key_the_box_does_not_know_is_access_denied(tmp_path: Path) -> None:
    """Until the market has attached our key the box refuses it, and that is not a lost link."""
    async with loopback_box(tmp_path) as there:
        stranger = tmp_path / "stranger"
        own_key(stranger)

        with pytest.raises(AccessDenied):
            await Box(there.address(), stranger).prove()


async def test_endpoints_are_tried_in_order(tmp_path: Path) -> None:
    """A dead direct address leads to the proxy's."""
    async with loopback_box(tmp_path) as there:
        address = replace(there.address(), endpoints=(("127.0.0.1", 1), ("127.0.0.1", there.port)))
        box = Box(address, there.key)

        await box.prove()

        assert (await box.run("pwd")).strip() == str(there.root)
        await box.aclose()


async def test_no_address_that_answers_is_a_lost_link(tmp_path: Path) -> None:
    """A refused connection says nothing about the work."""
    async with loopback_box(tmp_path) as there:
        with pytest.raises(LinkLost):
            await Box(there.address(port=1), there.key).prove()
