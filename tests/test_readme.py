"""Every block of code in the README runs, in order, in a folder that holds a video and nothing else.

`dynimg` runs in this process by its entry point: alone, nine tenths of its time would be imports. In processes of
their own run `lmms-eval`, also where `dynimg eval` starts it, and the first block of Python.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dynimg_plugin import cli
from dynimg_plugin.eval_tasks.motion_qa.dataset import clip_path, rows
from dynimg_plugin.tiny import write_tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
HUB_ID = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
INSTALLING = {
    "make demo",
    "make test",
    "pip install -e .",
}  # what this test is run by, and what comes before it


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    joined = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    row = rows("held_out", 1)[0]
    clip_path(row, folder).rename(folder / "clip.mp4")
    return folder


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def at_home(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


@pytest.mark.slow
def test_every_command_runs(folder, at_home, monkeypatch, capfd):
    ours = [command for command in commands() if command not in INSTALLING]
    assert len(ours) >= 8
    for command in ours:
        program, *arguments = shlex.split(command)
        if program == "dynimg":
            monkeypatch.setattr(sys, "argv", [program, *arguments])
            with pytest.raises(SystemExit) as end:
                cli.main()
            output = "".join(capfd.readouterr())
            assert end.value.code in (None, 0), (command, output)
        else:
            output = run(["bash", "-c", command], folder)
        assert "Traceback" not in output, (command, output)
    assert {path.name for path in folder.iterdir()} >= {
        "dynimgs.png",
        "explained.png",
        "frames.json",
        "tiny",
        "results",
    }
    assert list((folder / "out").rglob("*_results.json"))
    assert list((folder / "out").rglob("*_samples_motion_qa_mc.jsonl"))


@pytest.mark.slow
def test_every_python_block_runs(folder, at_home):
    if not (folder / "tiny").exists():
        write_tiny("llava_onevision", folder / "tiny")
    assert len(blocks("python")) == 3
    assert all(HUB_ID in block for block in blocks("python"))
    first, *others = (block.replace(HUB_ID, "tiny") for block in blocks("python"))
    run([sys.executable, "-c", first], folder)
    for block in others:
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_the_make_targets_of_the_readme_exist():
    for command in sorted(INSTALLING | {"make check", "make test-oldest"}):
        if command.startswith("make"):
            subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_first_code_comes_within_40_lines_and_the_tree_names_real_files():
    assert README[: README.index("```python")].count("\n") < 40
    tree = blocks("text")[0]
    for name in re.findall(r"[\w/.]+\.py\b|(?<![\w.])\w+/", tree):
        found = list(ROOT.glob(name)) or list((ROOT / "dynimg_plugin").glob(name))
        assert found, f"the README's tree names {name}, which is not there"
    for path in (ROOT / "dynimg_plugin").glob("*.py"):
        assert path.name in tree or path.name == "__init__.py", f"the README's tree leaves out {path.name}"
