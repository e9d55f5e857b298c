"""What the benchmarks train on: the ECB's rates as docs/examples/forex makes rows of them, read by the nano tokenizer.

Its 512 tokens are nearly bytes, so a row has about twice the tokens that it has for a model of the market.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from remote_payload.contract import DATA_DIR, DataFile

REPOSITORY = Path(__file__).resolve().parents[3]
NANO = REPOSITORY / "daemon" / "sandbox" / "models" / "nano"

Row = dict[str, Any]


def rows(sft: int, dpo: int, evaluation: int, *, think: bool = False) -> dict[str, list[Row]]:
    """So many rows by kind: sft, dpo, eval. Those for evaluation are later in time than all others."""
    sys.path.insert(0, str(REPOSITORY / "docs" / "examples" / "forex"))
    import build  # type: ignore[import-not-found]  # an example, in no package

    made = build.build(sft, dpo, evaluation, think=think)
    return {name.removesuffix(".jsonl"): rows for name, rows in made.items()}


def file(root: Path, rows: list[Row]) -> DataFile:
    """`rows` as a canonical file under the root."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    digest = hashlib.sha256(content).hexdigest()
    path = root / DATA_DIR / f"{digest}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return DataFile(f"{DATA_DIR}/{digest}.jsonl", digest, len(rows))
