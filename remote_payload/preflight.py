"""Is this machine what was rented? Looks, computes once on every card, prints one JSON line; trains nothing.

Exit 30 when a check failed: the daemon takes another host. Whether the machine has the cards that the offer promised
is for the daemon to judge, from what is listed here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remote_payload import host
from remote_payload.check import Check
from remote_payload.contract import Exit, Needs, load
from remote_payload.processes import boot_id

OLDEST_PYTHON = (3, 11)
COMPILED_LATER = frozenset(
    {"llama-cpp-python"}
)  # bootstrap.sh builds it beside the training; GGUF is the first to need it


def preflight(root: Path, needs: Needs) -> dict[str, Any]:
    """Everything the report says, `ok` first."""
    checks = [check for look in LOOKS for check in look(root, needs)]
    report: dict[str, Any] = {
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
        "boot_id": boot_id(),
        "disk_free": shutil.disk_usage(root).free,
        "ram": host.memory(),
        "python": platform.python_version(),
    }
    return report | found_cards()


def python_check() -> Check:
    ok = sys.version_info >= OLDEST_PYTHON
    return Check("python", ok, f"{platform.python_version()}, needs {'.'.join(map(str, OLDEST_PYTHON))}")


def requirement_checks() -> Iterator[Check]:
    """One check for each package that is missing or has another version than requirements.txt pins."""
    for line in Path(__file__).with_name("requirements.txt").read_text().splitlines():
        pinned = re.fullmatch(r"([\w.-]+)==(\S+)", line.strip())
        if not pinned or pinned[1] in COMPILED_LATER:
            continue
        name, version = pinned.groups()
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # the check below fails with it
            installed = "missing"
        if installed != version:
            yield Check(name, False, f"{installed}, needs {version}")


def card_checks() -> Iterator[Check]:
    """Those of cards.py; a driver without usable torch is a broken host."""
    try:
        from remote_payload import cards
    except ImportError as error:
        yield Check("torch", False, str(error))
        return
    yield from cards.checks()


def found_cards() -> dict[str, Any]:
    """What torch says of itself and the cards; memory in bytes."""
    try:
        import torch
    except ImportError:  # its check has failed already and says so
        return {"torch": None, "cuda": None, "gpus": []}
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [{"name": card.name, "memory": card.total_memory} for card in found]
    return {"torch": torch.__version__, "cuda": torch.version.cuda if gpus else None, "gpus": gpus}


# Every look at the machine, in their order: first what the later ones stand on. All together take less than a minute.
LOOKS: tuple[Callable[[Path, Needs], Iterable[Check]], ...] = (
    lambda root, needs: [python_check()],
    lambda root, needs: requirement_checks(),
    lambda root, needs: [host.disk_check(root, needs.disk)],
    lambda root, needs: [host.memory_check(needs.memory)],
    lambda root, needs: [host.line_check(needs)],
    lambda root, needs: card_checks(),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="preflight")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--needs", default="{}", help="contract.Needs as JSON")
    args = parser.parse_args()
    report = preflight(args.root, load(Needs, args.needs))
    print(json.dumps(report))
    return Exit.OK if report["ok"] else Exit.PREFLIGHT


if __name__ == "__main__":
    sys.exit(main())
