"""`dynimg doctor`: what is installed, what is live, what lmms-eval sees, and one line that mends each finding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement

DISTRIBUTION = "dynimg_plugin"
TOGETHER = ("transformers", "huggingface-hub", "tokenizers", "datasets", "sentence-transformers", "peft", "accelerate")


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fix` is empty when all is well."""

    name: str
    value: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'ok ' if not self.fix else 'FIX'}  {self.name:<20} {self.value}"
        return f"{line}\n     -> {self.fix}" if self.fix else line


def examine() -> Iterator[Finding]:
    """All findings, cheap ones first."""
    yield Finding("python", sys.version.split()[0])
    yield from _packages()
    yield from _together()
    for check in (_torch, _operator, _entry_point, _tasks, _encoder):
        try:
            yield check()
        except ImportError as error:
            name = error.name or "a package"
            yield Finding(
                check.__name__.strip("_"), f"{name} does not import: {error}", "pip install -c constraints.txt -e ."
            )


def _packages() -> Iterator[Finding]:
    for text in requires(DISTRIBUTION) or []:
        wanted = Requirement(text)
        if not _applies(wanted):
            continue
        if (found := _version(wanted.name)) is None:
            yield Finding(wanted.name, "missing", f"pip install '{wanted.name}{wanted.specifier}'")
            continue
        fits = wanted.specifier.contains(found, prereleases=True)
        fix = "" if fits else f"pip install '{wanted.name}{wanted.specifier}'"
        yield Finding(wanted.name, found if fits else f"{found}, outside {wanted.specifier}", fix)


def _together() -> Iterator[Finding]:
    """Packages that ask for another release of one another: an older transformers needs older ones of them all."""
    for name in filter(_version, TOGETHER):
        for wanted in filter(_applies, map(Requirement, requires(name) or [])):
            found = _version(wanted.name) if wanted.name.replace("_", "-") in TOGETHER else None
            if found is not None and not wanted.specifier.contains(found, prereleases=True):
                fix = f"pip install '{wanted.name}=={found}' {name} -e .  (pip looks for a {name} that goes with it)"
                yield Finding(name, f"needs {wanted.name}{wanted.specifier}, found is {found}", fix)


def _applies(wanted: Requirement) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": ""})


def _version(name: str) -> str | None:
    """The version that is installed; None for a package that is missing."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> Finding:
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        fix = "install the torchvision that belongs to this torch: pip install -c constraints.txt torch torchvision"
        return Finding("torch + vision", f"{torch.__version__}, torchvision does not load: {error}", fix)
    devices = f"{torch.cuda.device_count()} CUDA device(s)" if torch.cuda.is_available() else "CPU only"
    return Finding("torch + vision", f"{torch.__version__}, {devices}")


def _operator() -> Finding:
    import torch

    from dynimg_plugin.ops import describe
    from dynimg_plugin.ops.native import MEND, load_native

    native = load_native()
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    running = "; ".join(f"{device}: {describe('auto', device)}" for device in devices)
    built = f" (built for {', '.join(sorted(native.devices))})" if native.devices else ""
    return Finding("4D RoPE", running + built, MEND if native.mendable else "")


def _entry_point() -> Finding:
    names = [point.name for point in entry_points(group="lmms_eval.models")]
    if "dynimg" not in names:
        return Finding("entry point", "lmms-eval cannot see llava_dynimg", "reinstall: pip install -e .")
    from lmms_eval.models import get_model

    return Finding("lmms-eval model", f"llava_dynimg -> {get_model('llava_dynimg').__module__}")


def _tasks() -> Finding:
    from lmms_eval.tasks import TaskManager

    from dynimg_plugin.evaluation.manifest import tasks_path

    wired = getattr(TaskManager.initialize_tasks, "adds_dynimg", False)
    ours = TaskManager(include_path=tasks_path(), include_defaults=False).all_tasks
    fix = "" if wired else f"pass --include_path {tasks_path()} to lmms-eval"
    return Finding("lmms-eval tasks", ", ".join(sorted(ours)), fix)


def _encoder() -> Finding:
    import av

    fix = (
        "" if "libx264" in av.codecs_available else "reinstall the wheel with codecs: pip install --force-reinstall av"
    )
    return Finding("codecs", f"PyAV {av.__version__}, {len(av.codecs_available)} codecs", fix)
