"""How a command travels and how its reply is told from noise. Pure.

A login may print anything (banners, .bashrc, a tmux hook), so what counts is framed by a mark that is new each time.
The script goes through stdin: it needs no second quoting, has no length limit, and a secret in it shows in no process
list.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

SHELL = "/bin/bash --norc -s"  # --norc: with a socket as stdin bash would read .bashrc once more


@dataclass(frozen=True)
class Reply:
    """How a command ended: its exit code, all it printed, and the end of what it complained."""

    code: int
    output: str
    complaint: str

    @property
    def last_line(self) -> str:
        """The last line that is not empty: where every payload script puts its answer."""
        return next((line for line in reversed(self.output.splitlines()) if line.strip()), "")


def framed(script: str, mark: str, *, folder: str | None, env: Mapping[str, str]) -> str:
    """`script` in a subshell in `folder` (None: the login directory) between two lines that carry `mark`.

    The braces make it one command: bash runs nothing of a script that a lost connection has cut short.
    """
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    enter = [f"cd {shlex.quote(folder)} || exit 127"] if folder is not None else []
    body = "\n".join((*enter, *exports, script))
    return f"{{\nprintf '\\n%s begin\\n' {mark}\n(\n{body}\n) </dev/null\nprintf '\\n%s end %d\\n' {mark} $?\n}}\n"


def unframed(printed: bytes, complaint: bytes, mark: str) -> Reply | None:
    """The reply between the marks; None when the command never ran or was cut off."""
    text = printed.decode("utf-8", "replace")
    found = re.search(rf"^{mark} begin\n(.*)\n{mark} end (\d+)$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        return None
    return Reply(code=int(found[2]), output=found[1], complaint=complaint.decode("utf-8", "replace"))
