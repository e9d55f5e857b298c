"""Imports go downwards only: the table of docs/architecture.md, checked on every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = {"errors", "settings", "log", "clock", "platform", "notify", "web"}  # single modules at the top of the package

# Folder -> what it may import of this project. Every folder may import itself.
ALLOWED: dict[str, set[str]] = {
    "domain": {"errors", "clock"},
    "rows": {"errors", "remote_payload"},
    "store": {"domain", "errors", "clock", "platform", "settings"},
    "market": {"domain", "errors", "settings", "clock", "web"},
    "box": {"domain", "errors", "platform", "settings", "remote_payload"},
    "artifacts": {"domain", "errors", "platform", "settings", "web", "remote_payload"},
    "control": {
        "domain", "rows", "store", "market", "box", "artifacts", "errors", "settings", "clock", "platform",
        "remote_payload.contract",
    },
    "api": {"control", "store", "domain", "errors", "settings", "platform", "clock"},
    # The command line meets the daemon over its socket. It may read the database when the daemon is down, run the
    # daemon or the sandbox, send a test message, look at data files and this workstation for `data-check` and `doctor`,
    # and ask the market itself where neither daemon nor database can say what bills; while no daemon runs, it puts a
    # copy of the database back and moves the home to another computer.
    "cli": {"api.client", "api.messages", "store.readonly", "store.recorder", "store.shapes", "store.high_water",
            "store.backups",
            "control.leadership", "control.moving", "market.vast", "market.wire", "domain", "rows", "errors", "notify",
            "settings", "platform", "clock", "version", "app", "sandbox", "service", "artifacts.workstation",
            "artifacts.rebuild", "artifacts.scrub", "artifacts.levels", "artifacts.presence", "artifacts.verify"},
    "sandbox": {"remote_payload"},  # the replay runs on the box's side
    "service": {"settings", "errors", "platform"},
    "remote_payload": set(),
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for folder in ALLOWED:
        top = ROOT / folder if folder == "remote_payload" else ROOT / "daemon" / folder
        for path in sorted(top.rglob("*.py")):
            yield folder, path


def imported(path: Path) -> Iterator[str]:
    """What `path` imports of this project, without the leading `daemon.`."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("daemon."):
                yield name.removeprefix("daemon.")
            elif name.startswith("remote_payload"):
                yield name


@pytest.mark.parametrize(("folder", "path"), [pytest.param(f, p, id=str(p.relative_to(ROOT))) for f, p in modules()])
def test_imports_go_downwards(folder: str, path: Path) -> None:
    """A module imports only its own folder and those below it."""
    allowed = ALLOWED[folder] | {folder}

    for name in imported(path):
        assert any(name == ok or name.startswith(f"{ok}.") for ok in allowed), f"{path.name} imports {name}"


def test_known_hosts_are_never_switched_off() -> None:
    """`known_hosts=None` would accept any host key in silence."""
    offenders = [p for p in (ROOT / "daemon").rglob("*.py") if "known_hosts=None" in p.read_text(encoding="utf-8")]

    assert not offenders


def test_destroy_has_one_call_site() -> None:
    """Only control/operate.py destroys, and only control/permits.py makes a permit."""
    code = {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in (ROOT / "daemon").rglob("*.py")}

    assert [p for p, text in code.items() if ".market.destroy(" in text] == ["daemon/control/operate.py"]
    assert [p for p, text in code.items() if "DestroyPermit(" in text and "class DestroyPermit" not in text] == [
        "daemon/control/permits.py"
    ]
