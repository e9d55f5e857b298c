"""What stands for the interpreter that has torch: a shell script that answers for each script of the payload, and
writes down how it was called."""

from __future__ import annotations

from pathlib import Path


class ShellPython:
    """`path` is the interpreter. The bodies are shell code; "$4" is the root, or $4 to $8 what a fetch is told."""

    def __init__(
        self, folder: Path, *, lacking: str = "", converter: str = "", fetch: str = "", rebuild: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._calls = folder / "python", folder / "calls"
        self.path.write_text(
            f"""#!/bin/sh
echo "$2" "$3" >> {self._calls}
case "$2 $3" in
"remote_payload.rebuild --lacking") {lacking} ;;
"remote_payload.converter --root") {converter} ;;
"remote_payload.fetch --root") {fetch} ;;
"remote_payload.rebuild --root") {rebuild} ;;
*) exit 64 ;;
esac
"""
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """In their order: the script and its first argument."""
        return self._calls.read_text().splitlines() if self._calls.exists() else []
