"""The start script of a rented machine, carried by the create request.

It runs at every start of the container, as its login user, and may run any number of times. What it leaves behind needs
nobody: the answer to our proof, and the watch that stops the machine when nobody calls.
"""

from __future__ import annotations

import base64
import gzip
import shlex
from pathlib import Path

import remote_payload
from daemon.box import challenge
from daemon.settings import Image
from remote_payload.contract import LOG_FILE, RUN_DIR

_WATCH = "~/.homeport/away.py"


def script(image: Image, away_limit_s: float) -> str:
    """For `image`, whose machine may stand idle and uncalled for `away_limit_s`.

    The market takes 4096 characters, so the watch is packed; unpacked it lies on the machine as it is here.
    """
    source = (Path(remote_payload.__file__).parent / "away.py").read_bytes()
    packed = base64.b64encode(gzip.compress(source, mtime=0)).decode()
    root, python = shlex.quote(image.root), shlex.quote(image.python)
    return f"""{challenge.onstart()}
base64 -d <<'END' | gunzip > {_WATCH}
{packed}
END
cd && mkdir -p {root}/{RUN_DIR}
setsid {python} {_WATCH} {root} {away_limit_s:.0f} >> {root}/{RUN_DIR}/{LOG_FILE} 2>&1 </dev/null &"""
