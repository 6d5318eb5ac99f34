"""What lmms-eval loads through the entry-point group `lmms_eval.models`: light, and never in the way of others.

Models have an entry point, tasks have none: `manifests()` also adds our task folder to every TaskManager that loads
the default tasks, so that `--tasks motion_qa` needs no flag.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.resources import files
from types import ModuleType
from typing import Any

TASKS_MODULE = "lmms_eval.tasks"


def tasks_path() -> str:
    """The folder to give `--include_path` where the automatic registration is not wanted."""
    return str(files("dynimg_plugin.eval_tasks"))


def manifests() -> list[Any]:
    """The models of this package, for lmms-eval. Never raises: lmms-eval drops every plug-in after one that does."""
    from lmms_eval.models.registry_v2 import ModelManifest

    module = sys.modules.get(TASKS_MODULE)
    if module is not None and hasattr(module, "TaskManager"):
        _add_tasks(module)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
    path = "dynimg_plugin.evaluation.model.LlavaDynImg"
    return [ModelManifest(model_id="llava_dynimg", chat_class_path=path, aliases=("dynimg",))]


class _AfterImport(importlib.abc.MetaPathFinder):
    """lmms-eval imports its models before its tasks: runs _add_tasks() right after lmms_eval.tasks was executed."""

    searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != TASKS_MODULE or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _add_tasks(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _add_tasks(module: Any) -> None:
    """Let TaskManager.initialize_tasks() include our folder whenever it includes the defaults."""
    original = getattr(getattr(module, "TaskManager", None), "initialize_tasks", None)
    if original is None:
        logging.getLogger(__name__).warning("this lmms-eval has no TaskManager; pass --include_path %s", tasks_path())
        return
    if getattr(original, "adds_dynimg", False):
        return

    @functools.wraps(original)
    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True, **more: Any) -> Any:
        paths = [include_path] if isinstance(include_path, str) else list(include_path or [])
        if include_defaults and tasks_path() not in paths:
            paths.append(tasks_path())
        return original(self, include_path=paths or None, include_defaults=include_defaults, **more)

    initialize_tasks.adds_dynimg = True  # type: ignore[attr-defined]
    module.TaskManager.initialize_tasks = initialize_tasks
