"""The miniature study: what each part of the method buys, on the project's own modules.

    python -m benchmarks.motion run --quick                     # about a minute: all arms with three steps of each kind
    python -m benchmarks.motion run --seeds 5                   # hours; what is there already is not made again
    python -m benchmarks.motion run --only 'rope-shuffled-*'
    python -m benchmarks.motion budget --seeds 3                # accuracy against kept tokens, into the same folder
    python -m benchmarks.motion report                          # report.md and plots, from the runs alone
    python -m benchmarks.motion check                           # statistical checks; the third does not hold

From the repository root. Runs lie in motion_study/runs, with --quick in a temporary folder. Where there is a GPU it is
used. On a CPU these settings of glibc make it a third faster:

    export OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=8000000000 MALLOC_TRIM_THRESHOLD_=8000000000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from . import budget
from .checks import as_json, check
from .learning import STEPS
from .runs import QUICK, RATES, Scale, Study, all_runs, matching


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("benchmarks.motion", description=__doc__)
    whole.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = whole.add_subparsers(required=True)
    for name, command, words in (
        ("run", run, "make the runs"),
        ("budget", budgeted, "accuracy against kept tokens"),
        ("check", checked, "the statistical checks"),
    ):
        one = commands.add_parser(name, help=words)
        one.set_defaults(command=command, folder=Path("motion_check" if name == "check" else "motion_study"))
        seeds = {"run": 5, "budget": 3, "check": 1}[name]
        one.add_argument("--seeds", type=positive, default=seeds, help=f"default {seeds}; with --quick always 1")
        one.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        one.add_argument("--threads", type=positive, default=1, help="of PyTorch on a CPU; the parts are small: 1")
        one.add_argument("--steps", type=positive, default=STEPS, help="of training; other ones need another --output")
        one.add_argument("--quick", action="store_true", help="three steps of each kind; the figures mean nothing")
        one.add_argument("--output", type=Path, help="folder of the runs: motion_study, motion_check")
        one.add_argument("--json", type=new_file, help="write what was found to this file")
        if name == "run":
            one.add_argument("--only", default="*", metavar="PATTERN", help="runs whose name fits, like 'fusion-*-0'")
    one = commands.add_parser("report", help="write report.md and plots from the runs")
    one.set_defaults(command=reported, folder=Path("motion_study"), threads=1, quick=False)
    one.add_argument("--output", type=Path, help="folder of the runs; the report comes beside them")
    one.add_argument("--timings", type=Path, help="what benchmarks/token_budget.py --json wrote, for a table")
    return whole


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def new_file(text: str) -> Path:
    """Checked before the hours that come before the writing."""
    if not (path := Path(text)).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def scale_of(options: argparse.Namespace) -> Scale:
    return QUICK if options.quick else Scale(steps=options.steps)


def run(options: argparse.Namespace, folder: Path) -> int:
    every = list(all_runs(1 if options.quick else options.seeds))
    runs = matching(every, options.only)
    study = Study(folder, scale_of(options), options.device, partial(print, flush=True))
    study.run(runs, every)
    if options.json:
        options.json.write_text(json.dumps([study.read(one) for one in runs], indent=2) + "\n", "utf-8")
    return 0


def budgeted(options: argparse.Namespace, folder: Path) -> int:
    study = Study(folder, scale_of(options), options.device, partial(print, flush=True))
    files = budget.run(study, 1 if options.quick else options.seeds)
    if options.json:
        found = [json.loads(file.read_text("utf-8")) for file in files]
        options.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


def reported(options: argparse.Namespace, folder: Path) -> int:
    try:
        from .report import write
    except ModuleNotFoundError as error:
        raise ValueError(f"the report needs {error.name}: pip install -e '.[study]'") from error
    print(write(folder / "runs", folder, options.timings))
    return 0


def checked(options: argparse.Namespace, folder: Path) -> int:
    """At one learning rate, without a search."""
    study = Study(folder, replace(scale_of(options), rates=RATES[-1:]), options.device, partial(print, flush=True))
    findings = list(check(study, 1 if options.quick else options.seeds))
    print(*findings, sep="\n")
    if options.json:
        options.json.write_text(json.dumps(as_json(findings), indent=2) + "\n", "utf-8")
    return 0 if options.quick or all(finding.holds for finding in findings) else 1


def main() -> int:
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    if not options.quick:
        return options.command(options, options.output or options.folder)
    with tempfile.TemporaryDirectory() as folder:
        status = options.command(options, options.output or Path(folder))
    print("--quick: these figures mean nothing" + ("" if options.output else "; --output FOLDER keeps the runs"))
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(str(error))
