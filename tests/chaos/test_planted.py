"""A bug planted into the installed package is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.installed import build_wheel, install
from tests.chaos.__main__ import alone
from tests.chaos.schedule import draw, is_real

CREATE = (
    'reply = await self._exchange(Call.CREATE, "PUT", f"/api/v0/asks/{request.offer_id}/", wire.create_body(request))'
)
AGAIN = f"""try:
            {CREATE}
        except MarketUnreachable:
            {CREATE}"""


def losing_a_create() -> int:
    """The first replayed run in which the reply to a create is lost."""
    return next(
        n
        for n in range(1000)
        if not is_real(n) and any((s.deed.name, s.aim) == ("reply_lost", "create") for s in draw(n).strokes)
    )


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_create_that_is_blindly_repeated(tmp_path: Path) -> None:
    """Whoever sends a create again because its reply was lost is told so, with the label."""
    bin_folder = install(build_wheel(tmp_path / "wheel"), tmp_path / "venv")
    (vast,) = bin_folder.parent.glob("lib/python*/site-packages/daemon/market/vast.py")
    assert vast.read_text().count(CREATE) == 1
    vast.write_text(vast.read_text().replace(CREATE, AGAIN))

    report = alone(str(losing_a_create()), bin_folder, tmp_path / "run", "")

    assert any(line.startswith("create hp-") and "times" in line for line in report["broken"]), report
