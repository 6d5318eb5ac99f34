"""TrainConfig: what `dynimg train` is told, from a YAML file, a preset's name and key=value words."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from transformers import TrainingArguments

from dynimg_plugin.compat import NEWER_ARGUMENTS
from dynimg_plugin.config import DynImgConfig

Engine = Literal["trainer", "trl"]
Part = Literal["vision_tower", "projector", "language_model", "theta", "slots"]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


def workers(most: int = 4) -> int:
    """Data workers of the presets: `most`, or as many as there are CPUs for this process."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(most, cpus)


_COMMON: dict[str, Any] = {
    "theta_lr": 1e-2,  # absolute; Adam travels about learning rate x steps (probes.check_travel)
    "bf16": True,
    "activation_checkpointing": True,
    "logging_steps": 10,
    "dataloader_num_workers": workers(),
    "save_total_limit": 3,
}
_PLLAVA: dict[str, Any] = {  # the recipe that the DynImg paper says it follows
    **_COMMON,
    "learning_rate": 2e-5,
    "weight_decay": 0.02,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # share of all steps: PLLaVA's text; its script has 0.2
    "num_train_epochs": 3,
    "global_batch_size": 128,
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper_full": {**_PLLAVA, "lora_r": 0, "train_parts": ["language_model", "projector", "theta", "slots"]},
    "pllava_lora": {
        **_PLLAVA,
        "lora_r": 128,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_targets": ["q_proj", "v_proj"],
        "train_parts": ["projector", "theta", "slots"],
    },
    "lora_default": {
        **_COMMON,
        "lora_r": 64,
        "lora_alpha": 128,
        "lora_dropout": 0.05,
        "lora_targets": [*ATTENTION, *MLP],
        "train_parts": ["projector", "theta", "slots"],
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "num_train_epochs": 1,
        "global_batch_size": 32,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run. In files and on the command line all keys are flat: those of this class, every field of
    DynImgConfig (num_images, fusion, ...) and every field of transformers.TrainingArguments (learning_rate, ...).

    Attributes:
        base: hub id or folder of the checkpoint to start from.
        output: folder for checkpoints and the finished adapter or model.
        data: data sets: .json (LLaVA `conversations`) or .jsonl (`messages`) files, or names such as
            `motion_qa_mc:500`, the first 500 rows of a drawn data set.
        data_root: folder that videos and pictures lie in; nothing outside of it is opened. By default the folder of
            the data file.
        eval_data: as `data`, for the loss on unseen rows (with eval_strategy=steps).
        eval_tasks: lmms-eval tasks, separated by commas, run on the model while it trains, e.g. motion_qa_mc.
        eval_limit: questions per task. eval_every: steps between evaluations; by default once, at the end.
        lora_r: rank; 0 trains no LoRA.
        lora_alpha, lora_dropout, lora_targets: see peft.LoraConfig; targets are names of linear layers of the decoder.
        train_parts: parts whose own weights are trained: vision_tower, projector, language_model, theta, and
            slots, the slot embedding of fusion=tokens (learning_rate applies); what the model lacks is left out.
        theta_lr: learning rate of theta, absolute, whatever learning_rate is. Weight decay never applies to theta.
        random_prompts: draw prompt frames at random, anew in every epoch (paper); otherwise as in evaluation.
        keep_composed: read every video once and keep its DynImgs in memory, for small sets; each worker keeps its own,
            and workers then live on between epochs. Only with random_prompts=false.
        least_keep: draw the share of visual tokens between this and `keep` for every batch, anew in every epoch, so
            that the result can be used with any such budget; None: always `keep`.
        max_broken: share of rows whose video cannot be read that is tolerated.
        max_length: longest sequence in tokens, None for no limit; longer rows lose the end of their answer.
        video_timeout: seconds that reading one video may take.
        global_batch_size: rows per step over all devices; sets gradient_accumulation_steps. None leaves that to you.
        engine: "trainer" (HF Trainer) or "trl" (SFTTrainer).
        dynimg: fields of DynImgConfig. arguments: fields of TrainingArguments.

    Raises:
        ValueError: for a value that is not allowed.
    """

    base: str
    output: str
    data: tuple[str, ...]
    data_root: str | None = None
    eval_data: tuple[str, ...] = ()
    eval_tasks: str | None = None
    eval_limit: int | None = None
    eval_every: int | None = None
    lora_r: int = 0
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ATTENTION
    train_parts: tuple[Part, ...] = ("projector", "theta", "slots")
    theta_lr: float = 1e-2
    random_prompts: bool = True
    keep_composed: bool = False
    least_keep: float | None = None
    max_broken: float = 0.05
    max_length: int | None = None
    video_timeout: float = 60.0
    global_batch_size: int | None = None
    engine: Engine = "trainer"
    dynimg: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values, allowed in (
            ("train_parts", self.train_parts, get_args(Part)),
            ("engine", (self.engine,), get_args(Engine)),
        ):
            if odd := [value for value in values if value not in allowed]:
                raise ValueError(f"{name}={odd[0]!r} is not known; allowed: {', '.join(allowed)}")
        if not self.data:
            raise ValueError("data is empty; give .json or .jsonl files, or motion_qa_mc:500")
        if not (self.lora_r or self.train_parts):
            raise ValueError("nothing would be trained: give lora_r > 0 or train_parts")
        if self.lora_r and "language_model" in self.train_parts:
            raise ValueError("lora_r and train_parts=language_model exclude each other; set lora_r=0 for full training")
        if self.keep_composed and self.random_prompts:
            raise ValueError("keep_composed=true keeps one choice of prompt frames; set random_prompts=false beside it")
        if not 0 <= self.max_broken < 1:
            raise ValueError(f"max_broken={self.max_broken} is no share; allowed: from 0 to below 1")


OWN = tuple(f.name for f in fields(TrainConfig) if f.name not in ("dynimg", "arguments"))
DYNIMG = tuple(f.name for f in fields(DynImgConfig))
_THEIRS = (f.name for f in fields(TrainingArguments) if f.init and f.name != "output_dir")
ARGUMENTS = tuple(dict.fromkeys([*_THEIRS, *NEWER_ARGUMENTS]))
LISTS = ("data", "eval_data", "lora_targets", "train_parts")


def read_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> TrainConfig:
    """Build a TrainConfig: the preset's values, then the file's, then those of `overrides`.

    Args:
        source: a YAML file (which may name a `preset`), the name of a preset, or a mapping of the same keys.
        overrides: "key=value" words, values read as YAML: ["max_steps=100", "data=[a.json, motion_qa_mc:200]"].

    Raises:
        FileNotFoundError: no such file and no such preset.
        ValueError: an unknown or missing key, with the nearest known names.
    """
    values = dict(source) if isinstance(source, Mapping) else _read(source)
    values |= dict(_pair(word) for word in overrides)
    preset = values.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is not known; presets: {', '.join(PRESETS)}")
    return _build({**PRESETS.get(preset, {}), **values})


def _read(source: str | Path) -> dict[str, Any]:
    if str(source) in PRESETS:
        return {"preset": str(source)}
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source} is neither a YAML file nor a preset ({', '.join(PRESETS)})")
    try:
        values = yaml.safe_load(Path(source).read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds no `key: value` lines")
    return values


def _pair(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is not of the form key=value")
    return name, _number(yaml.safe_load(value))


def _build(values: dict[str, Any]) -> TrainConfig:
    known = (*OWN, *DYNIMG, *ARGUMENTS, "preset")
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `dynimg train --help`"
            raise ValueError(f"unknown training option {name!r}; {hint}")
    if missing := [name for name in ("base", "output", "data") if not values.get(name)]:
        words = " ".join(f"{name}=..." for name in missing)
        raise ValueError(f"{', '.join(missing)} missing; give it in the file or as {words}")
    plain = {name: _number(value) for name, value in values.items()}
    own: dict[str, Any] = {
        name: _as_tuple(value) if name in LISTS else value for name, value in plain.items() if name in OWN
    }
    own |= {name: str(own[name]) for name in ("base", "output", "data_root") if own.get(name) is not None}
    return TrainConfig(
        **own,
        dynimg={name: plain[name] for name in DYNIMG if name in plain},
        arguments={name: plain[name] for name in ARGUMENTS if name in plain},
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else tuple(str(value).split(","))


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as a text."""
    with_exponent = isinstance(value, str) and "e" in value.lower() and value[:1].isdigit()
    try:
        return float(value) if with_exponent else value
    except ValueError:
        return value
