"""No error is swallowed: whoever catches one raises, records it, or gives the reason for going on beside the line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROAD = {"Exception", "BaseException"}
RECORDS = {"log", "events"}  # whose calls write something down


def modules() -> list[Path]:
    return sorted(path for top in ("daemon", "remote_payload") for path in (ROOT / top).rglob("*.py"))


def swallowed(source: str) -> list[str]:
    """Every place of `source` where an error ends without a trace, as 'line: what is wrong'."""
    lines = source.splitlines()
    return [wrong for node in ast.walk(ast.parse(source)) for wrong in _wrong(node, lines)]


def _wrong(node: ast.AST, lines: list[str]) -> Iterator[str]:
    if isinstance(node, ast.ExceptHandler):
        if node.type is None:
            yield f"{node.lineno}: a bare except"
        elif _is_broad(node.type) and not _records(node):
            yield f"{node.lineno}: every exception is caught, and none is raised or recorded"
        elif not _records(node) and not _says_why(lines[node.lineno - 1 : node.end_lineno]):
            yield f"{node.lineno}: caught without a record or a reason"
    elif isinstance(node, ast.With | ast.AsyncWith):
        for item in node.items:
            if _is_suppress(item.context_expr) and not _says_why(lines[node.lineno - 1 : node.lineno]):
                yield f"{node.lineno}: suppressed without a reason on its line"


def _is_broad(caught: ast.expr) -> bool:
    return any(isinstance(name, ast.Name) and name.id in BROAD for name in ast.walk(caught))


def _records(handler: ast.ExceptHandler) -> bool:
    """It raises, passes the error on by its name, or writes to the log or the events."""
    for node in (each for statement in handler.body for each in ast.walk(statement)):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Name) and node.id in RECORDS | {handler.name}:
            return True
    return False


def _is_suppress(context: ast.expr) -> bool:
    called = context.func if isinstance(context, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name == "suppress"


def _says_why(lines: list[str]) -> bool:
    """A comment that is more than an order to a linter."""
    comments = (line.partition("#")[2] for line in lines)
    return any(
        part.strip() and not part.strip().startswith(("noqa", "type:")) for c in comments for part in c.split("#")
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_error_is_swallowed(path: Path) -> None:
    """Each handler raises, records, or says why it goes on."""
    assert swallowed(path.read_text(encoding="utf-8")) == []


SWALLOWERS = {
    "bare": "try:\n    f()\nexcept:\n    raise\n",
    "broad": "try:\n    f()\nexcept Exception:  # whatever\n    pass\n",
    "broad among others": "try:\n    f()\nexcept (OSError, BaseException):  # whatever\n    pass\n",
    "silent": "try:\n    f()\nexcept OSError:\n    pass\n",
    "a named error that nobody looks at": "try:\n    f()\nexcept OSError as error:\n    return_value = 1\n",
    "an order to a linter": "try:\n    f()\nexcept OSError:  # noqa: S110\n    pass\n",
    "suppress": "with contextlib.suppress(OSError):\n    f()\n",
    "suppress by its own name": "with suppress(OSError):\n    f()\n",
}
HONEST = {
    "raises": "try:\n    f()\nexcept OSError:\n    raise ValueError from None\n",
    "logs": "try:\n    f()\nexcept Exception:\n    log.exception('x')\n",
    "passes it on": "try:\n    f()\nexcept OSError as error:\n    hold(error)\n",
    "says why": "try:\n    f()\nexcept OSError:  # the caller counts it as missing\n    pass\n",
    "suppresses for a reason": "with suppress(OSError):  # it is gone already\n    f()\n",
}


@pytest.mark.parametrize("source", SWALLOWERS.values(), ids=SWALLOWERS)
def test_a_swallower_is_found(source: str) -> None:
    """The search finds each way of losing an error."""
    assert len(swallowed(source)) == 1


@pytest.mark.parametrize("source", HONEST.values(), ids=HONEST)
def test_an_honest_handler_passes(source: str) -> None:
    """What raises, records or explains is left alone."""
    assert swallowed(source) == []
