"""What jobctl makes of a job's name before it asks the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.api.client import Client
from daemon.errors import NoSuchJob
from daemon.settings import Paths


@pytest.mark.parametrize("ref", ["", "models/bot", "/"])
def test_what_names_no_job_is_no_missing_daemon(tmp_path: Path, ref: str) -> None:
    """An empty variable of a script, or a path: exit 3, and not 4, which says that the daemon is down."""
    with pytest.raises(NoSuchJob) as caught:
        Client(Paths(tmp_path, tmp_path, tmp_path)).cancel(ref, "ann", False, None)

    assert caught.value.exit_code == 3
