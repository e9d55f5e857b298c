"""`jobctl doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from daemon.api.messages import Check
from daemon.cli.terminal import Look

COLOURS = {"PASS": "good", "WARN": "warn", "FAIL": "bad", "SKIP": "dim"}


def screen(checks: Sequence[Check], look: Look) -> str:
    """One line a check; the command that mends it below."""
    name_width = max(len(check["name"]) for check in checks)
    lines = []
    for check in checks:
        status = look.paint(check["status"], COLOURS[check["status"]])
        lines.append(f"{status}  {check['name']:<{name_width}}  {check['detail']}")
        if check["fix"] and check["status"] in ("WARN", "FAIL"):
            lines.append(f"{'':<{name_width + 8}}Try: {check['fix']}")
    failed = sum(check["status"] == "FAIL" for check in checks)
    lines += ["", "Everything is in place." if not failed else f"{failed} of {len(checks)} checks failed."]
    return "\n".join(lines)
