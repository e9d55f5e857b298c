"""YAML 1.2 with line numbers.

Not YAML 1.1, where `2e-4` is text, `no` is False and `12:30` is 750.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from daemon.errors import SpecError

MOST_VALUES = 10_000  # a job file has a hundred; aliases of aliases unfold to billions within ten lines

Where = tuple[str | int, ...]  # keys and list positions from the top


@dataclass(frozen=True)
class Document:
    """The values as plain dicts, tuples and scalars, and the line each one was written on."""

    source: str
    values: dict[str, Any]
    tree: CommentedMap

    def position(self, where: Where) -> tuple[int, int]:
        """Line and column of the key or item at `where`, or of the nearest part of it that was written; from 0."""
        node: Any = self.tree
        position = (0, 0)
        for step in where:
            if isinstance(node, CommentedMap) and step in node:
                position = node.lc.key(step)
            elif isinstance(node, CommentedSeq) and isinstance(step, int) and step < len(node):
                position = node.lc.item(step)
            else:
                break
            node = node[step]
        return position

    def at(self, where: Where, message: str) -> str:
        """`message` as 'file:line: field: message'."""
        name = ".".join(str(step) for step in where)
        return f"{self.source}:{self.position(where)[0] + 1}: {name}: {message}"


def load(text: str, source: str) -> Document:
    """Raises SpecError when the text is no YAML, repeats a key, is too large, or is not a table of keys."""
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise SpecError([f"{source}:{line}: {(error.problem or 'not YAML').strip()}"]) from error
    except YAMLError as error:
        raise SpecError([f"{source}:1: not YAML: {error}"]) from error
    except RecursionError as error:
        raise SpecError([f"{source}:1: lists and tables lie too deep in one another"]) from error
    if not isinstance(tree, CommentedMap):
        raise SpecError([f"{source}:1: the file must be a table of keys, such as `version: 1`"])
    if any(True for _ in islice(_unfolded(tree), MOST_VALUES, None)):
        raise SpecError([f"{source}:1: the file unfolds to more than {MOST_VALUES:,} values"])
    return Document(source, _plain(tree), tree)


def _unfolded(tree: Any) -> Iterator[Any]:
    """Every value in `tree`, those behind an alias once for each use."""
    open_ones: list[Iterator[Any]] = [iter((tree,))]
    while open_ones:
        for node in open_ones[-1]:
            yield node
            if isinstance(node, dict):
                open_ones.append(value for _, value in node.items())
                break
            if isinstance(node, list):
                open_ones.append(iter(node))
                break
        else:
            open_ones.pop()


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return tuple(_plain(value) for value in node)
    for kind in (bool, int, float, str):  # ruamel's scalars remember how they were written
        if isinstance(node, kind):
            return kind(node)
    return node
