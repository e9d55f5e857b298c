"""The proof that a host key, seen for the first time, belongs to the box we rented.

The market publishes no host keys. What it does carry, over its own TLS, is an environment variable for the instance: a
secret that nobody on the network path knows. After the first login, and before anything of value is sent, the box must
return HMAC-SHA256(secret, nonce + host key as we saw it). A man in the middle can pretend to be the box but not answer
for it: our public-key login signs his own session, so he cannot relay it to the real one. The host's operator and the
market, who can read the secret, are not kept out.
"""

from __future__ import annotations

import hashlib
import hmac
import shlex

ENV_NAME = "HOMEPORT_CHALLENGE"
STORED = ".homeport/challenge"  # relative to the login directory
NOT_YET = "not-yet"  # the answer of a box whose start script has not run

# Arguments: file of the secret, text to authenticate. Any Python 3 runs it; nothing of ours is on the box yet.
_PROVER = f"""
import hashlib, hmac, os, sys
secret = os.path.expanduser(sys.argv[1])
if os.path.exists(secret):
    print(hmac.new(open(secret, "rb").read(), sys.argv[2].encode(), hashlib.sha256).hexdigest())
else:
    print("{NOT_YET}")
"""


def onstart() -> str:
    """What the start script does for the proof: keep the secret where `prover` finds it.

    `~/.no_auto_tmux` keeps the image from throwing our commands into a tmux session.
    """
    store = f'printf %s "${ENV_NAME}" > ~/{STORED}.new; mv ~/{STORED}.new ~/{STORED}'
    return f"touch ~/.no_auto_tmux\n(umask 077; mkdir -p ~/.homeport; {store})"


def question(nonce: str, host_key: str) -> str:
    """What the box has to authenticate."""
    return f"{nonce} {host_key}"


def prover(python: str, asked: str) -> str:
    """The shell command that prints the box's answer to `asked`, or NOT_YET."""
    return f"{shlex.quote(python)} -c {shlex.quote(_PROVER)} {shlex.quote('~/' + STORED)} {shlex.quote(asked)}"


def is_right(answer: str, secret: str, asked: str) -> bool:
    expected = hmac.new(secret.encode(), asked.encode(), hashlib.sha256).hexdigest()
    return hmac.compare_digest(answer.strip().encode(), expected.encode())
