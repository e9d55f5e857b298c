"""The start script of a rented machine, carried by the create request.

It runs at every start of the container, as its login user, and may run any number of times. What it leaves behind needs
nobody: the answer to our proof, and the watch that stops the machine when nobody calls.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import remote_payload
from daemon.box import challenge
from daemon.settings import Image
from remote_payload.contract import LOG_FILE, RUN_DIR

_WATCH = "~/.homeport/away.py"


def script(image: Image, away_limit_s: float) -> str:
    """For `image`, whose machine may stand idle and uncalled for `away_limit_s`. The market takes 4096 characters."""
    source = (Path(remote_payload.__file__).parent / "away.py").read_text()
    root, python = shlex.quote(image.root), shlex.quote(image.python)
    return f"""{challenge.onstart()}
cat > {_WATCH} <<'END'
{source}END
cd && mkdir -p {root}/{RUN_DIR}
setsid {python} {_WATCH} {root} {away_limit_s:.0f} >> {root}/{RUN_DIR}/{LOG_FILE} 2>&1 </dev/null &"""
