"""Files that are whole or not there, also when a run is killed or two processes share a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write(file: Path, by: Callable[[Path], Any]) -> None:
    """`by` writes to the path that it is given, which then takes the file's place at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    by(part)
    part.replace(file)


def write_json(file: Path, record: Any) -> None:
    write(file, lambda part: part.write_text(json.dumps(record, indent=2) + "\n", "utf-8"))
