"""Files that survive a kill: written whole or not at all, or line by line; and the digests that stand in them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def digest(content: Any) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def write(path: Path, text: str) -> Path:
    """Write a text file, complete or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n", "utf-8")
    return temporary.replace(path)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add a line of JSON in one write, behind a line that a kill has cut short if need be; on disk when this returns.

    Raises:
        OSError: the disk is full.
    """
    line = (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        line = b"\n" + line if torn else line
        if os.write(file, line) != len(line):
            raise OSError(f"{path}: the disk took only part of a line; make room and start again")
    finally:
        os.close(file)


def read_lines(path: Path, take: Callable[[dict[str, Any]], None]) -> None:
    """Hand every line to `take`; a line that is cut short, or that `take` cannot use, is skipped with a warning."""
    broken = 0
    for line in filter(bytes.strip, path.read_bytes().splitlines() if path.exists() else []):
        try:
            take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError):
            broken += 1
    if broken:
        logger.warning("%s: %d broken line(s) skipped; what they held will be asked for again", path, broken)
