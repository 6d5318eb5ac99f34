"""The wheel carries what the editable install shows: patches, tasks with their data, and the entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import dynimg_plugin, pathlib
from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin import supported_families
assert pathlib.Path(dynimg_plugin.__file__).is_relative_to(pathlib.Path({target!r})), dynimg_plugin.__file__
assert pathlib.Path(tasks_path()).is_relative_to(pathlib.Path({target!r})), tasks_path()
assert "llava_onevision" in supported_families()
from lmms_eval.tasks import TaskManager, get_task_dict
manager = TaskManager(include_path=tasks_path(), include_defaults=False, model_name="llava_dynimg")
assert "motion_qa_open" in manager.all_tasks
from dynimg_plugin.tiny import build_tiny
build_tiny("llava_next")
"""


@pytest.mark.slow
def test_the_wheel_works_by_itself(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    sources = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_bytes((ROOT / name).read_bytes())
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(sources)]
    subprocess.run(command, env={**os.environ, "DYNIMG_BUILD": "none"}, check=True)
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "patches").glob("*.py"):
        assert f"dynimg_plugin/patches/{path.name}" in names
    for path in (ROOT / "eval_tasks").rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            assert f"dynimg_plugin/eval_tasks/{path.relative_to(ROOT / 'eval_tasks')}" in names
    assert {"dynimg_plugin/_build.json", "dynimg_plugin/csrc/rope4d_cuda.cu"} <= names
    assert not any(name.startswith(("tests/", "patches/", "eval_tasks/")) for name in names)
    target = tmp_path / "target"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    code = f"import sys; sys.path.insert(0, {str(target)!r})\n" + USE.format(target=str(target))
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
