"""What ships: everything that is needed, nothing that is not, and no heavy library where none was asked for."""

from __future__ import annotations

import configparser
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from installed import ROOT

MEGABYTE = 1 << 20

NEEDED = [
    "daemon/app.py",
    "daemon/cli/jobctl.py",
    "daemon/sandbox/recordings/nano.tar.gz",
    "daemon/sandbox/models/nano/model.safetensors",
    "daemon/sandbox/models/nano/tokenizer.json",
    "daemon/_migrations/env.py",
    "remote_payload/contract/__init__.py",
    "remote_payload/bootstrap.sh",
    "remote_payload/requirements.txt",
]
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "llama_cpp", "numpy", "vastai"}


@pytest.fixture(scope="module")
def shipped(wheel: Path) -> dict[str, int]:
    """Every file of the wheel with its size in bytes."""
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist()}


def read(wheel: Path, name: str) -> str:
    """A file of the wheel's metadata."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [entry for entry in archive.namelist() if entry.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def requirements(lines: list[str]) -> set[str]:
    """Requirements without comments, names as the index compares them."""
    stripped = (line.partition("#")[0].strip() for line in lines)
    return {line.lower().replace("_", "-") for line in stripped if line}


def test_everything_needed_is_there(shipped: dict[str, int]) -> None:
    """Daemon, payload with its shell script and pins, migrations, the nano model and the recorded run."""
    assert [name for name in NEEDED if name not in shipped] == []
    revisions = {path.name for path in (ROOT / "migrations" / "versions").glob("*.py")}
    assert revisions and revisions == {Path(n).name for n in shipped if n.startswith("daemon/_migrations/versions/")}


def test_nothing_else_is_there(shipped: dict[str, int]) -> None:
    """Two packages and the metadata; no tests, no bytecode, no notes of the workplace, and small."""
    tops = {name.split("/")[0] for name in shipped}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"daemon", "remote_payload"}
    assert [name for name in shipped if re.search(r"(^|/)(tests?|__pycache__)/|\.py[co]$|/\.", name)] == []
    assert max(shipped.values()) < 5 * MEGABYTE
    assert sum(shipped.values()) < 12 * MEGABYTE


def test_commands(wheel: Path) -> None:
    """jobctl and jobd, and no third."""
    entries = configparser.ConfigParser()
    entries.read_string(read(wheel, "entry_points.txt"))
    assert dict(entries["console_scripts"]) == {"jobctl": "daemon.cli:main", "jobd": "daemon.app:main"}


def test_licence_ships(wheel: Path) -> None:
    """Apache-2.0 with its text."""
    assert "License-Expression: Apache-2.0" in read(wheel, "METADATA")
    assert "Apache License" in read(wheel, "licenses/LICENSE")


def test_box_extra_is_the_payloads_pins_and_torch() -> None:
    """One list of pins for the box, kept in two places, never apart."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = requirements(project["optional-dependencies"]["box"])
    pins = requirements((ROOT / "remote_payload" / "requirements.txt").read_text().splitlines())
    (torch,) = extra - pins
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", torch)
    assert pins < extra


@pytest.mark.parametrize("module", ["daemon.app", "daemon.cli", "daemon.sandbox.serve"])
def test_core_imports_are_light(installed: Path, module: str) -> None:
    """Without extras the program starts: nothing of training or verifying is imported before it is used."""
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    command = [installed / "python", "-c", code]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.split()
    assert HEAVY & set(loaded) == set()
