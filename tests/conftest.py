"""For every test, before anything else."""

from __future__ import annotations

import signal

from hypothesis import settings

# Started in the background, a shell has us ignore Ctrl-C, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time: a rare one that fails belongs to whoever looks for it, not to whoever lands next.
# `--hypothesis-seed=random --hypothesis-profile=default` looks for it.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
