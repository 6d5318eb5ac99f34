"""Installing never fails for want of torch or a compiler and tells truly what came out; by force it fails loudly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from dynimg_plugin.ops import build, native

ROOT = Path(__file__).parents[1]
SITES = [Path(place) for place in sys.path if place.endswith("site-packages")]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A copy of the tracked sources and an environment with setuptools alone."""
    folder = tmp_path_factory.mktemp("bare")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / "source" / name)
    venv.create(folder / "venv")
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    for pattern in (
        "setuptools*",
        "pkg_resources",
        "_distutils_hack",
        "distutils-precedence.pth",
        "wheel*",
        "packaging*",
    ):
        for path in (found for place in SITES for found in place.glob(pattern)):
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            if not (site / path.name).exists():
                copy(path, site / path.name)
    return folder, site


def install(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "venv/bin/python")]
    command = [*pip, "install", "--no-deps", "--no-build-isolation", "--force-reinstall", "-e", str(folder / "source")]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DYNIMG_BUILD")}
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True, check=False)


def doctors_line(folder: Path) -> str:
    """What `dynimg doctor` says of the operator, without the other lines, which import lmms-eval."""
    subprocess.run([folder / "venv" / "bin" / "dynimg", "--version"], capture_output=True, check=True)
    command = [folder / "venv" / "bin" / "python", "-c", "from dynimg_plugin.doctor import _operator as o; print(o())"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def told(folder: Path) -> dict:
    return json.loads((folder / "source" / "dynimg_plugin" / "_build.json").read_text("utf-8"))


@pytest.mark.slow
def test_without_torch_without_compiler_and_by_force(bare):
    folder, site = bare
    done = install(folder)
    assert done.returncode == 0, done.stderr
    assert told(folder)["built"] == "none"
    assert told(folder)["without_torch"]

    (site / "base.pth").write_text("".join(f"{folder}\n" for folder in SITES))  # now there is torch
    line = doctors_line(folder)
    assert "reference (PyTorch); native: torch was not visible" in line
    assert line.startswith("FIX")
    assert "-> dynimg build-ext" in line

    done = install(folder, CXX="/bin/false", CC="/bin/false")
    assert done.returncode == 0, done.stderr
    assert told(folder)["built"] == "none"
    assert "cpu build failed" in " ".join(told(folder)["why"])
    line = doctors_line(folder)
    assert line.startswith("ok")
    assert "cpu build failed" in line

    assert install(folder, DYNIMG_BUILD="cpu", CXX="/bin/false", CC="/bin/false").returncode != 0
    refused = install(folder, DYNIMG_BUILD="fast")
    assert refused.returncode != 0
    assert "allowed are auto, cuda, cpu, none" in refused.stderr + refused.stdout


def test_here_is_compiled_what_can_be():
    """A compile error must not pass as 'no compiler'."""
    found = native.load_native()
    assert not found.stale, found.why
    told_here = json.loads((build.PACKAGE / "_build.json").read_text("utf-8"))
    assert "build failed" not in found.why or "mismatch" in found.why, found.why
    if shutil.which("c++"):
        assert "cpu" in found.devices, told_here
    if torch.version.cuda and shutil.which("nvcc") and "mismatch" not in found.why:
        assert "cuda" in found.devices, told_here


def report(**changes) -> dict:
    good = {"built": "cpu", "why": [], "without_torch": False, "torch": torch.__version__, "sources": build.digest()}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("content", "why", "mendable"),
    [
        (None, "never built", True),
        (report(built="none", why=["no compiler"]), "no compiler", False),
        (report(torch="1.0"), "built for torch 1.0", True),
        (report(sources="0"), "other sources", True),
        (report(), "a binary that is not there", True),
    ],
)
def test_what_is_stale_is_refused_by_name(tmp_path, monkeypatch, content, why, mendable):
    if content is not None:
        (tmp_path / "_build.json").write_text(json.dumps(content), "utf-8")
    (tmp_path / "csrc").symlink_to(build.PACKAGE / "csrc")
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    found = native.load_native.__wrapped__()
    assert why in found.why
    assert found.mendable == mendable
    assert not found.devices


def test_a_binary_that_does_not_load_is_named(tmp_path, monkeypatch):
    (tmp_path / "_build.json").write_text(json.dumps(report()), "utf-8")
    (tmp_path / "_C.abi3.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    found = native.load_native.__wrapped__()
    assert found.stale
    assert "_C.abi3.so does not load" in found.why


def test_a_stale_binary_warns_with_the_mend(monkeypatch):
    from dynimg_plugin.ops import implementations

    monkeypatch.setattr(
        implementations, "load_native", lambda: native.Native(why="built for another torch", stale=True)
    )
    with pytest.warns(UserWarning, match="built for another torch. Mend: dynimg build-ext"):
        assert implementations._native_missing("cpu") == "built for another torch"


def test_an_nvcc_outside_its_toolkit_is_not_believed(tmp_path, monkeypatch):
    class Extension:
        CUDA_HOME = str(tmp_path)  # no include/cuda_runtime_api.h

    monkeypatch.setenv("CUDA_HOME", "unchanged")  # and put back afterwards
    assert build.find_toolkit(Extension) in (None, "/usr/local/cuda")
