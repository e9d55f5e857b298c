"""For every test: started in the background, a shell has us ignore Ctrl-C, and children would inherit that."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
