"""The list of runs, most important first, and what each leaves: one JSON, which is never made twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch

from dynimg_plugin import DynImgConfig
from dynimg_plugin.config import ThetaScope

from .arms import CONFIGS, timing_of
from .files import write, write_json
from .learning import LORA_R, STEPS, Reader, Recipe, accuracy, attention, learn, theta_norms
from .plan import DYNIMGS, FUSIONS, OTHER_THETA_RATES, OTHERS, PROMPTS, PROMPTS_20, REGIMES, THETA_RATE
from .records import VERSION
from .regimes import CHOICES, KEY
from .scenes import FOUR_GROUPS, Clips, draw_clips
from .tower import STEPS as TOWER_STEPS
from .tower import encoded

RATES = (4e-3, 8e-3)  # tried for every tower on the tuning split
LORA, PLAIN = "lora", "canvas_apart"  # whose key frames' cells no prompt has changed: a checkpoint of plain frames


@dataclass(frozen=True)
class Scale:
    """How large a round is."""

    clips: int = 8000
    tuning: int = 500
    evaluation: int = 2000
    tower_steps: int = TOWER_STEPS
    steps: int = STEPS
    rates: tuple[float, ...] = RATES


QUICK = Scale(clips=64, tuning=16, evaluation=32, tower_steps=3, steps=3, rates=RATES[-1:])


@dataclass(frozen=True)
class Run:
    """One run: which tower reads the clips (`fusion`), and how the language model learns."""

    experiment: str
    arm: str
    fusion: str
    regime: str
    seed: int
    rope_4d: bool = False
    theta_lr: float = THETA_RATE
    theta_scope: ThetaScope = "shared"
    axis_split: bool = False

    @property
    def rope(self) -> str:
        return "axis_split" if self.axis_split else "4d" if self.rope_4d else "1d"

    @property
    def line(self) -> str:
        """The name without the seed."""
        regime = "" if self.experiment == "fusion" else f"{self.regime}-"
        return f"{self.experiment}-{regime}{self.arm}"

    @property
    def tuned_on(self) -> Run:
        """The run that is tried with every learning rate for all of the same tower: 1D RoPE, all tokens, seed 0."""
        if self.experiment == LORA:
            return Run(LORA, "1d", self.fusion, LORA, 0)
        arm = "axis_split" if self.axis_split else self.fusion
        return Run("fusion", arm, self.fusion, "fixed", 0, axis_split=self.axis_split)

    @property
    def work(self) -> tuple[Any, ...]:
        """What is computed: two experiments may hold the same run under two names."""
        return self.fusion, self.choice, self.rope, self.config, self.seed, self.theta_lr, self.experiment == LORA

    @property
    def name(self) -> str:
        return f"{self.line}-{self.seed}"

    @property
    def names(self) -> dict[str, Any]:
        return {"experiment": self.experiment, "arm": self.arm, "regime": self.regime, "seed": self.seed}

    @property
    def options(self) -> dict[str, Any]:
        prompts = CONFIGS[self.fusion].frames_per_image - 1
        clips = {} if timing_of(self.fusion) is FOUR_GROUPS else {"clip_frames": timing_of(self.fusion).frames}
        lora = {"lora_r": LORA_R} if self.experiment == LORA else {}
        theta = {"theta_lr": self.theta_lr, "theta_scope": self.theta_scope} if self.rope_4d else {}
        return {"fusion": self.fusion, "prompts": prompts, "rope": self.rope, **theta, **lora, **clips}

    @property
    def choice(self) -> str:
        """Which tokens the regime chooses."""
        return CHOICES.get(self.regime, self.regime) if self.regime != LORA else "fixed"

    @property
    def config(self) -> DynImgConfig:
        if not self.rope_4d:
            return CONFIGS[self.fusion]
        t_mode = "time" if self.regime.endswith("_time") else "slot"
        return replace(CONFIGS[self.fusion], rope_4d=True, theta_scope=self.theta_scope, t_mode=t_mode)


def all_runs(seeds: int) -> Iterator[Run]:
    """Every run of the study: seed by seed, so that a stopped study has whole seeds."""
    for seed in range(seeds):
        for fusion in FUSIONS:
            yield Run("fusion", fusion, fusion, "fixed", seed)
        for regime in REGIMES:
            for rope in ("1d", "4d"):
                yield Run("rope", rope, "canvas", regime, seed, rope == "4d")
        for rate in (THETA_RATE, *OTHER_THETA_RATES):
            yield Run("theta_lr", f"{rate:g}", "canvas", "shuffled", seed, True, rate)
        for scope in get_args(ThetaScope):
            yield Run("theta", scope, "canvas", "shuffled", seed, True, theta_scope=scope)
        yield Run("fusion", "axis_split", "canvas", "fixed", seed, axis_split=True)
        for rope in ("1d", "4d"):
            yield Run(LORA, rope, PLAIN, LORA, seed, rope == "4d")
        for other in OTHERS:
            yield Run("fusion", other, other, "fixed", seed)
        for experiment, numbers in (("frames_20", PROMPTS_20), ("frames", PROMPTS), ("dynimgs", DYNIMGS)):
            for number, fusion in numbers.items():
                yield Run(experiment, str(number), fusion, "fixed", seed)


def _available(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but this torch sees no CUDA device; take --device cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


class Study:
    """Runs into a folder: study.json, runs/*.json, tuning/*.json, features/*.pt, checkpoints/*.pt.

    Args:
        show: gets lines of progress.

    Raises:
        ValueError: the folder holds a study of another scale or device, or the device is not there.
    """

    def __init__(self, folder: Path, scale: Scale | None = None, device: str = "auto", show: Any = print) -> None:
        self.folder, self.scale, self.show = folder, scale or Scale(), show
        self.device = _available(device)
        file, own = folder / "study.json", {"version": VERSION, **asdict(self.scale), "rates": list(self.scale.rates)}
        own["device"] = self.device  # towers differ in their last bits, and pairs shall not
        if not file.is_file():
            write_json(file, own)
        there = json.loads(file.read_text("utf-8"))
        if odd := [name for name in sorted(own.keys() | there.keys()) if own.get(name) != there.get(name)]:
            differ = ", ".join(f"{name} {there.get(name)}, here {own.get(name)}" for name in odd)
            raise ValueError(
                f"{folder} holds a study with {differ}; take another --output, or the same options as there"
            )

    def run(self, runs: list[Run], others: Iterable[Run] = ()) -> int:
        """Make those runs that have no JSON yet; returns how many. The same work under another name is copied.

        Args:
            others: runs that are not asked for, but taken where they are the same work.
        """
        missing = [run for run in runs if not self.file(run).is_file()]
        self.announce([self.file(run) for run in runs])
        done = {run.work: run for run in (*others, *runs) if self.file(run).is_file()}
        for number, run in enumerate(missing, 1):
            if self.file(run).is_file():  # another process was quicker
                continue
            record = {**(self.read(done[run.work]) if run.work in done else self._record(run)), **run.names}
            write_json(self.file(run), record)
            done[run.work] = run
            found = "  ".join(f"{question} {right:.0f}" for question, right in record["accuracy"].items())
            self.show(f"{number}/{len(missing)} {run.name}: {found}  ({record['wall_seconds']:.0f} s)")
        return len(missing)

    def announce(self, files: list[Path]) -> None:
        """Show how many of these runs are there."""
        self.show(f"{len(files)} runs, {sum(map(Path.is_file, files))} there already, on {self.device}")

    def read(self, run: Run) -> dict[str, Any]:
        """The JSON of a run that is there."""
        return json.loads(self.file(run).read_text("utf-8"))

    def file(self, run: Run) -> Path:
        return self.folder / "runs" / f"{run.name}.json"

    def clips(self, fusion: str, seed: int) -> dict[str, Clips]:
        """The train split differs by seed; tuning and evaluation are the same for all runs with clips of one timing."""
        sizes = {"train": self.scale.clips, "tuning": self.scale.tuning, "evaluation": self.scale.evaluation}
        timing = timing_of(fusion)
        return {
            split: draw_clips(split, size, seed if split == "train" else 0, timing) for split, size in sizes.items()
        }

    def data(self, fusion: str, seed: int) -> Any:
        """Features of the arm's own tower, made on first use."""
        folder, steps = self.folder / "features", self.scale.tower_steps
        return encoded(fusion, self.clips(fusion, seed), seed, self.device, folder, steps)

    def recipe(self, run: Run, rate: float) -> Recipe:
        start = self._checkpoint(run.seed) if run.experiment == LORA else None
        return Recipe(run.config, run.choice, run.seed, rate, run.theta_lr, run.axis_split, self.scale.steps, start)

    def _checkpoint(self, seed: int) -> Path:
        """Weights of a model that has learned from key frames alone, without DynImgs: made on first use."""
        file = self.folder / "checkpoints" / f"plain-{seed}.pt"
        if not file.is_file():
            like = Run("fusion", PLAIN, PLAIN, "fixed", seed)
            rate, _ = self.rate(like)
            self.show(f"a checkpoint of plain frames, seed {seed}")
            recipe = replace(self.recipe(like, rate), regime=KEY)
            model, _ = learn(self.data(PLAIN, seed), recipe, self.device, self._point)
            write(file, partial(torch.save, model.state_dict()))
        return file

    def rate(self, run: Run) -> tuple[float, int]:
        """The learning rate that was best for runs of this tower on the tuning split, and how many were tried."""
        rates = self.scale.rates
        if len(rates) == 1:
            return rates[0], 1

        def on_tuning_split(rate: float) -> float:
            return fmean(self._with_rate(run.tuned_on, rate)["curve"][-1]["accuracy"].values())

        return max(rates, key=on_tuning_split), len(rates)

    def _with_rate(self, run: Run, rate: float) -> dict[str, Any]:
        """A run whose learning rate is searched for, at one of them: tuning/*.json, made on first use."""
        file = self.folder / "tuning" / f"{run.line}-{rate:g}.json"
        if not file.is_file():
            self.show(f"{run.line} with learning rate {rate:g}")
            write_json(file, self._learned(run, rate))
        return json.loads(file.read_text("utf-8"))

    def _point(self, point: dict[str, Any]) -> None:
        rights = list(point["accuracy"].values())
        fast = point["accuracy"]["direction_fast"]
        self.show(f"    step {point['step']}: {sum(rights) / len(rights):.1f} %, fast direction {fast:.1f} %")

    def _record(self, run: Run) -> dict[str, Any]:
        rate, tuned = self.rate(run)
        searched = tuned > 1 and run.work == run.tuned_on.work
        return {**(self._with_rate(run.tuned_on, rate) if searched else self._learned(run, rate)), "tuned": tuned}

    def _learned(self, run: Run, rate: float) -> dict[str, Any]:
        data = self.data(run.fusion, run.seed)
        recipe = self.recipe(run, rate)
        wall, cpu = time.perf_counter(), time.process_time()
        model, curve = learn(data, recipe, self.device, self._point)
        reader = Reader(data["evaluation"], recipe, self.device)
        return {
            "version": VERSION,
            **run.names,
            "options": run.options,
            "visual_tokens": round(fmean(batch.features.shape[1] for batch in reader.batches())),
            "steps": recipe.steps,
            "learning_rate": rate,
            "tuned": 1,
            "accuracy": accuracy(model, reader),
            "curve": curve,
            "theta_norms": theta_norms(model),
            "attention": attention(model, reader),
            "wall_seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "device": self.device,
            "torch": torch.__version__,
        }


def matching(runs: Iterable[Run], pattern: str) -> list[Run]:
    """The runs whose name fits a shell pattern, such as "fusion-*" or "rope-shuffled-?d-0".

    Raises:
        ValueError: none does.
    """
    runs_here = list(runs)
    if found := [run for run in runs_here if fnmatch(run.name, pattern)]:
        return found
    lines = ", ".join(dict.fromkeys(run.line for run in runs_here))
    raise ValueError(f"no run is called {pattern!r}; runs are called LINE-SEED, with lines {lines}")
