"""device_map="auto" over several cards, which no machine of these tests has: where each part of the model goes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from daemon.sandbox.models import nano_folder

ROOT = Path(__file__).parents[2]
MAPPED = """
import json, sys, torch
from pathlib import Path
from remote_payload.training import head_on_first
print(json.dumps(head_on_first(Path(sys.argv[1]), torch.bfloat16, {0: 1_700_000, 1: 3_000_000})))
"""


def test_the_head_lies_where_the_rows_are(box_python: Path) -> None:
    """The layers go over both cards as they did, the head to the first: TRL computes its loss there, or fails."""
    done = subprocess.run(
        [box_python, "-c", MAPPED, nano_folder()], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )

    mapped = json.loads(done.stdout.splitlines()[-1])
    assert mapped["lm_head"] == mapped["model.embed_tokens"] == 0
    assert {part: card for part, card in mapped.items() if part.startswith("model.layers")}
    assert set(mapped.values()) == {0, 1}
