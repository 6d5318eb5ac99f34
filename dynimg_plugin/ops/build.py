"""Compiles csrc/ into `_C`, or says why not. For setup.py and `dynimg build-ext`; imports torch only when building.

An install never fails for want of a compiler: CUDA and CPU together are tried first, then CPU alone, then nothing. What
came out and why stands in `_build.json` beside the package. DYNIMG_BUILD=cuda | cpu | none | auto names one; `cuda` and
`cpu` then fail loudly.
"""

from __future__ import annotations

import hashlib
import json
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
REPORT = "_build.json"
SOURCES = {"cpu": ["rope4d_cpu.cpp"], "cuda": ["rope4d_cpu.cpp", "rope4d_cuda.cu"]}
WANTED = ("auto", "cuda", "cpu", "none")
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # at::parallel_for is header code that needs it
EXACT = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", *OPENMP]
FLAGS = {"cxx": EXACT if os.name == "posix" else ["/O2", "/fp:precise"], "nvcc": ["-O3", "--fmad=false"]}


def digest() -> str:
    """Of sources and flags; a binary of others is stale."""
    files = sorted(path for path in (PACKAGE / "csrc").iterdir() if path.suffix in (".h", ".cpp", ".cu"))
    content = b"".join(path.read_bytes() for path in files) + repr(FLAGS).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def find_torch() -> Any:
    """pip builds in an environment of its own, run by the target environment's interpreter: look there too."""
    try:
        import torch
    except ImportError:
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            site.addsitedir(folder)  # last on the path: the build environment's setuptools wins
        import torch
    return torch


def find_toolkit(cpp_extension: Any) -> str | None:
    """CUDA_HOME that holds the runtime's headers; an nvcc on PATH may be a wrapper outside its toolkit."""
    for home in (cpp_extension.CUDA_HOME, "/usr/local/cuda"):
        if home and Path(home, "include", "cuda_runtime_api.h").exists():
            cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"] = home
            return home
    return None


def plan(wanted: str, report: dict[str, Any]) -> list[tuple[str, Callable[[], Any]]]:
    """What to try, best first, as (name, make the extension); fills the report with what cannot be tried and why."""
    if wanted not in WANTED:
        raise SystemExit(f"DYNIMG_BUILD={wanted}: allowed are {', '.join(WANTED)}")
    if wanted == "none":
        report["why"].append("DYNIMG_BUILD=none")
        return []
    try:
        torch = find_torch()
    except ImportError as error:
        if wanted != "auto":
            raise SystemExit(f"DYNIMG_BUILD={wanted} needs torch: {error}; install torch first") from error
        report["why"].append("torch was not visible when it was to be built")
        report["without_torch"] = True
        return []
    from torch.utils import cpp_extension

    report |= {"torch": torch.__version__, "sources": digest()}
    tries = []
    if wanted in ("auto", "cuda"):
        missing = _missing_for_cuda(torch, cpp_extension)
        if not missing:
            tries.append(("cuda", lambda: _extension(cpp_extension, "cuda")))
        elif wanted == "cuda":
            raise SystemExit(f"DYNIMG_BUILD=cuda cannot be done: {missing}")
        else:
            report["why"].append(f"no CUDA part: {missing}")
    return tries if wanted == "cuda" else [*tries, ("cpu", lambda: _extension(cpp_extension, "cpu"))]


def _missing_for_cuda(torch: Any, cpp_extension: Any) -> str:
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if find_toolkit(cpp_extension) is None:
        return "no CUDA toolkit with headers was found; set CUDA_HOME"
    if not os.environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = "8.0;9.0+PTX"
    return ""


def _extension(cpp_extension: Any, name: str) -> Any:
    make = cpp_extension.CUDAExtension if name == "cuda" else cpp_extension.CppExtension
    inside = PACKAGE.parent == Path.cwd()  # setup.py: setuptools wants relative paths; elsewhere they would lead astray
    folder = PACKAGE.relative_to(Path.cwd()) if inside else PACKAGE
    sources = [str(folder / "csrc" / source) for source in SOURCES[name]]
    options = {"extra_compile_args": FLAGS, "extra_link_args": OPENMP, "py_limited_api": True}
    return make("dynimg_plugin._C", sources, **options)


def new_report() -> dict[str, Any]:
    return {"built": "none", "why": [], "without_torch": False, "torch": None, "arch": None, "sources": None}


def setup_arguments(wanted: str) -> dict[str, Any]:
    """`ext_modules` and `cmdclass` for setup(). The report is written by a build, not by setup.py's other commands."""
    report = new_report()
    tries = plan(wanted, report)
    if not tries:
        return {"cmdclass": {"build_py": _reporting(report)}}
    return {"ext_modules": [tries[-1][1]()], "cmdclass": {"build_ext": command(wanted, tries, report)}}


def write_report(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f"{REPORT}.{os.getpid()}"
    fresh.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    fresh.replace(folder / REPORT)


def _reporting(report: dict[str, Any]) -> type:
    """A build_py that says that nothing was compiled, and why."""
    from setuptools.command.build_py import build_py

    class Report(build_py):
        def run(self) -> None:
            write_report(report, PACKAGE)
            super().run()

    return Report


def command(wanted: str, tries: list[tuple[str, Callable[[], Any]]], report: dict[str, Any]) -> type:
    """A build_ext that takes the first try that compiles."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            for name, make in tries:
                fresh = make()
                for field in ("sources", "include_dirs", "library_dirs", "libraries", "define_macros", "language",
                              "extra_compile_args", "extra_link_args", "runtime_library_dirs"):  # fmt: skip
                    # setuptools has set this object up already: swapping it for the fresh one would break it
                    setattr(self.extensions[0], field, getattr(fresh, field))
                try:
                    super().build_extensions()
                except (Exception, SystemExit) as error:  # whatever a foreign toolchain can raise; it is reported
                    if wanted == name:
                        raise
                    report["why"].append(f"{name} build failed: {type(error).__name__}: {str(error)[:300]}")
                    continue
                report["built"] = name
                report["arch"] = os.environ.get("TORCH_CUDA_ARCH_LIST", "native") if name == "cuda" else None
                break
            else:
                self.extensions[:] = []
            for folder in {PACKAGE, Path(self.build_lib, "dynimg_plugin")}:
                write_report(report, folder)

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

        def get_outputs(self) -> list[str]:
            return super().get_outputs() if self.extensions else []

    return Build


def build_in_place(wanted: str = "auto") -> dict[str, Any]:
    """Compile into the installed package, e.g. after torch was installed or upgraded; returns the report."""
    from setuptools import Distribution

    if not os.access(PACKAGE, os.W_OK):
        raise PermissionError(f"{PACKAGE} cannot be written to; run this as the user who installed the package")
    report = new_report()
    tries = plan(wanted, report)
    if not tries:
        write_report(report, PACKAGE)
    else:
        arguments = {"ext_modules": [tries[-1][1]()], "cmdclass": {"build_ext": command(wanted, tries, report)}}
        distribution = Distribution({"name": "dynimg_plugin", **arguments})
        build = distribution.get_command_obj("build_ext")
        with tempfile.TemporaryDirectory() as scratch:
            build.build_lib, build.build_temp = str(PACKAGE.parent), scratch
            distribution.run_command("build_ext")
    return json.loads((PACKAGE / REPORT).read_text("utf-8"))
