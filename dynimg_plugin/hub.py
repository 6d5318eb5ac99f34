"""Files beside a checkpoint, in a folder or in a hub repository."""

from __future__ import annotations

from pathlib import Path

from transformers.utils import cached_file

from dynimg_plugin.config import CONFIG_NAME


def config_file(base: str | Path) -> Path | None:
    """The dynimg_config.json of a folder or hub repository; None when it has none or cannot be reached."""
    return file_beside(base, CONFIG_NAME)


def file_beside(base: str | Path, name: str) -> Path | None:
    """A file of a folder or hub repository; None when it has none or cannot be reached."""
    if Path(base).is_dir():
        path = Path(base) / name
        return path if path.is_file() else None
    found = cached_file(
        str(base),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)
