"""Our tasks' YAML files, read without lmms-eval, whose import alone takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from dynimg_plugin.evaluation.current import Settings
from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.evaluation.rows import Row


class _Loader(yaml.SafeLoader):
    """`!function a.b.c` stays the text "a.b.c"."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def task_configs(names: Iterable[str], folder: str | Path | None = None) -> dict[str, dict[str, Any] | None]:
    """Of every task named, groups spread out, its YAML with what it includes; None for tasks that are not ours."""
    known = _known(folder)
    found: dict[str, dict[str, Any] | None] = {}
    for name in names:
        config = known.get(name)
        members = config.get("task") if config else None
        found |= task_configs(members, folder) if isinstance(members, list) else {name: config}
    return found


def task_names() -> list[str]:
    """All tasks and groups of this package."""
    return sorted(_known(None))


def _known(folder: str | Path | None) -> dict[str, dict[str, Any]]:
    files = [_read(path) for path in sorted(Path(folder or tasks_path()).rglob("*.yaml"))]
    return {config.get("group") or config["task"]: config for config in files}


def _read(path: Path) -> dict[str, Any]:
    config = yaml.load(path.read_text("utf-8"), _Loader)
    included = config.pop("include", None)
    return config if included is None else {**_read(path.parent / included), **config}


def read_rows(config: dict[str, Any], settings: Settings) -> list[Row]:
    """The questions of a task that names `rows`, as VideoTask reads them.

    Raises:
        FileNotFoundError, ValueError: what is missing from the data, and where it was looked for.
    """
    module, _, name = config["rows"].rpartition(".")
    options = dict(config.get("dataset_kwargs") or {})
    in_yaml = options.pop("data_root", None)
    root = settings.data_root or in_yaml
    return getattr(import_module(module), name)(Path(root) if root else None, config["test_split"], **options)


def missing_videos(rows: Iterable[Row]) -> list[str]:
    """Paths that were looked for and are not there, each once."""
    found = {row.video: row.found for row in rows}
    return [video for video, there in found.items() if not there]
