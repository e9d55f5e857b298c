"""The daemon's windows on a market that is faster than the real one."""

from __future__ import annotations

from daemon.settings import Timing


def test_machines_of_a_fast_market_start_no_faster() -> None:
    """Waits for the market are divided; the patience with processes of this computer is not, beyond its least."""
    fast = Timing().scaled(200.0)

    assert (fast.poll_every, fast.destroy_resend, fast.create_absent_listings) == (0.05, 0.3, 5)
    assert (fast.boot_patience, fast.ssh_patience, fast.transfer_patience) == (60.0, 60.0, 5.0)
    assert Timing().scaled(1.0) == Timing()
