"""Finding a benchmark's files under one root, whatever the folders above them are called."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif")
DEPTH = 4  # folders between the root and the annotations at most


def find_folder(root: Path, names: Iterable[str]) -> Path:
    """The folder of one of these names (upper and lower case are one): the root itself or one at most 3 levels below.

    Raises:
        FileNotFoundError: there is none, with what was looked for.
    """
    wanted = {name.lower() for name in names}
    if root.name.lower() in wanted:
        return root
    for folder in _folders(root, 3):
        if folder.name.lower() in wanted:
            return folder
    raise FileNotFoundError(f"{root} holds no folder named {' or '.join(names)}, nor do the folders in it")


def find_file(folder: Path, name: str) -> Path:
    """A file by name, in `folder` or below it.

    Raises:
        FileNotFoundError: there is none.
    """
    for place in (folder, *_folders(folder, DEPTH)):
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f"{folder} holds no {name}, nor do the folders in it")


def _folders(root: Path, depth: int) -> Iterator[Path]:
    """Folders below `root`, near ones first, in the order of their names."""
    level = [root]
    for _ in range(depth):
        level = [Path(entry) for folder in level for entry in _entries(folder) if entry.is_dir()]
        yield from level


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def read_list(path: Path, fields: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a JSON list (or of JSON lines), each with at least these fields.

    Raises:
        ValueError: no such list, or a row that lacks a field.
    """
    text = path.read_text("utf-8")
    try:
        rows = (
            [json.loads(line) for line in text.split("\n") if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    for number, row in enumerate(rows):
        if missing := [name for name in fields if name not in row]:
            raise ValueError(f"{path}: row {number} lacks {', '.join(missing)}; it has {', '.join(row)}")
    return rows


class VideoFolder:
    """The videos in and below a folder, by name without ending; found by listing the folders once.

    A name with several files is the one whose ending comes first in `VIDEOS`, then the one that sorts first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[str, Path] = {}
        found = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
        videos = [path for path in found if path.suffix.lower() in VIDEOS]
        for path in sorted(videos, key=lambda path: (VIDEOS.index(path.suffix.lower()), path)):
            self._paths.setdefault(path.stem, path)

    def path(self, name: str, prefix: str = "") -> str:
        """The file of a video that the annotations name with or without ending; else where it was looked for."""
        given = Path(name)
        stem, ending = (given.stem, given.suffix) if given.suffix.lower() in VIDEOS else (name, ".mp4")
        for candidate in (prefix + stem, stem):
            if candidate in self._paths:
                return str(self._paths[candidate])
        return str(self.folder / f"{prefix}{stem}{ending}")
