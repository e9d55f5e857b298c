"""Which of the market's accounts our machines are in.

Asked with another account's key the market lists none of them, and says of each that there is no such instance: exactly
what it says of one that is gone. So what one account's listings say counts for no machine of another.
"""

from __future__ import annotations

from daemon.domain.records import Kind
from daemon.errors import CredentialsRefused
from daemon.store import leader, leases, operations
from daemon.store.database import Database

ACCOUNT = "account"  # of the newest trusted listing, in meta


def refuse_another(database: Database, account: int | None) -> None:
    """Remember `account`, which the key belongs to. Raises CredentialsRefused while we may have machines in another."""
    with database.read() as c:
        ours = leader.get_meta(c, ACCOUNT)
        if account is None or ours == str(account):
            return
        held = leases.held(c)
        # What a stage start came to only the machine's box can say, and that machine is held as long as it matters.
        asked = [op for op in operations.open_ones(c) if op.kind is not Kind.STAGE_START]
    if ours is not None and (held or asked):
        what = ", ".join(f"instance {lease.instance_id}" for lease in held) or "what was asked for"
        raise CredentialsRefused(
            f"the key is of account {account}, but of account {ours} is {what}",
            hint=f"put the key of account {ours} back, then jobctl up",
        )
    with database.write() as c:
        leader.put_meta(c, ACCOUNT, str(account))
