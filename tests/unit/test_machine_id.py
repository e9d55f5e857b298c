"""The name of this computer, by which a moved database is known: it is not the network's."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from daemon import platform

IOREG = """+-o J314sAP  <class IOPlatformExpertDevice, id 0x100000227>
    {
      "IOPlatformSerialNumber" = "C02"
      "IOPlatformUUID" = "4A1B0C2D-0000-5A5A-9F9F-00DEADBEEF00"
    }
"""


@pytest.fixture(params=["annes-laptop.local", "annes-laptop.fritz.box"])
def network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which on macOS gives this computer another host name."""
    monkeypatch.setattr("socket.gethostname", lambda: request.param)


def test_a_mac_keeps_its_name_in_another_network(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every job is held after a walk from the office: "last used on another machine"."""

    def run(command: Any, **options: Any) -> Any:
        assert command[0].endswith("ioreg")
        return SimpleNamespace(stdout=IOREG, returncode=0)

    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)

    assert platform.machine_id() == "4A1B0C2D-0000-5A5A-9F9F-00DEADBEEF00"


def test_windows_keeps_its_own(network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Key:
        def __enter__(self) -> Key:
            return self

        def __exit__(self, *why: Any) -> None:
            pass

    registry = SimpleNamespace(
        HKEY_LOCAL_MACHINE=0,
        KEY_READ=1,
        KEY_WOW64_64KEY=2,
        OpenKey=lambda *where: Key(),
        QueryValueEx=lambda key, name: ("0f8fad5b-d9cb-469f-a165-70867728950e", 1),
    )
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setitem(sys.modules, "winreg", registry)

    assert platform.machine_id() == "0f8fad5b-d9cb-469f-a165-70867728950e"
