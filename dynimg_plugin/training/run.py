"""train(): from a TrainConfig to a finished adapter or model. It builds objects; HF Trainer or TRL trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, set_seed

from dynimg_plugin.compat import training_options
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.loading import load
from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.training.callback import DynImgCallback, Evaluate
from dynimg_plugin.training.collator import DynImgCollator
from dynimg_plugin.training.config import TrainConfig
from dynimg_plugin.training.dataset import DynImgDataset
from dynimg_plugin.training.parts import keep_exact, name_wrapped_layers, set_up_parts
from dynimg_plugin.training.saving import complete_checkpoint, save_result
from dynimg_plugin.video import VideoLimits

QUARANTINE = "broken_rows.jsonl"


@dataclass(frozen=True)
class TrainResult:
    """What a run left behind.

    Attributes:
        output: folder of the adapter (LoRA) or of the whole checkpoint; load() reads either.
        metrics: of the whole run: train_loss, train_runtime, ...
        history: the logged values in order, theta's norms among them.
        broken: rows whose video could not be read: {id: reason}.
    """

    output: Path
    metrics: dict[str, float]
    history: list[dict[str, float]]
    broken: dict[str, str]


def train(config: TrainConfig) -> TrainResult:
    """Fine-tune `config.base` and write the result to `config.output`.

    Raises:
        ValueError: from the probes before the first step, or for a config that does not fit model or data.
        TooManyBroken: more unreadable videos than config.max_broken.
    """
    arguments = training_arguments(config)
    resume = _resume(config, arguments)
    set_seed(arguments.seed)
    model, processor = build_model(config, arguments)
    dataset = _dataset(config.data, config, processor, arguments.seed)
    _fit_to_kinds(arguments, dataset.kinds)
    if config.keep_composed and arguments.dataloader_num_workers:
        arguments.dataloader_persistent_workers = True  # else what they keep ends with the epoch
    unseen = _dataset(config.eval_data, config, processor, None, "broken_eval_rows.jsonl") if config.eval_data else None
    trainer = _trainer(config, arguments, model, processor, dataset, unseen)
    if trainer.is_fsdp_enabled and arguments.world_size > 1 and "text" in dataset.kinds and len(dataset.kinds) > 1:
        raise ValueError(
            "under FSDP all ranks must run the vision tower in every step, but the data holds rows without video; "
            "train on DDP or ZeRO-2, or leave those rows out"
        )
    trainer.add_callback(
        DynImgCallback(
            trainer,
            theta_lr=config.theta_lr,
            evaluate=_evaluation(config, processor),
            evaluate_every=config.eval_every,
        )
    )
    done = trainer.train(resume_from_checkpoint=resume)
    save_result(trainer, processor, config, Path(config.output))
    return TrainResult(Path(config.output), done.metrics, trainer.state.log_history, dataset.all_broken())


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """TrainingArguments (SFTConfig for TRL) of a run, with what our data needs."""
    own = {
        "activation_checkpointing": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **config.arguments,
        "output_dir": config.output,
        "remove_unused_columns": False,
    }
    own.pop("resume_from_checkpoint", None)
    if config.engine == "trl":
        from trl import SFTConfig

        own = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, **own}
        arguments: Any = SFTConfig(**training_options(SFTConfig, own))
    else:
        arguments = TrainingArguments(**training_options(TrainingArguments, own))
    if config.global_batch_size is not None:
        arguments.gradient_accumulation_steps = _accumulation(config, arguments)
    return arguments


def _accumulation(config: TrainConfig, arguments: TrainingArguments) -> int:
    at_once = arguments.per_device_train_batch_size * arguments.world_size
    if "gradient_accumulation_steps" in config.arguments:
        raise ValueError("global_batch_size sets gradient_accumulation_steps; give one (global_batch_size=null)")
    steps, rest = divmod(config.global_batch_size or at_once, at_once)
    if rest or not steps:
        raise ValueError(
            f"global_batch_size={config.global_batch_size} is no multiple of {at_once} rows at once "
            f"(per_device_train_batch_size x processes)"
        )
    return steps


def build_model(config: TrainConfig, arguments: TrainingArguments) -> tuple[Any, DynImgProcessor]:
    """The patched model, ready to train: LoRA or whole parts, trained weights in fp32."""
    mixed = arguments.bf16 or arguments.fp16
    asked = DynImgConfig().with_options(config.dynimg) if config.dynimg else None
    model, processor = load(config.base, config=asked, dtype="auto" if mixed else "float32")
    processor.limits = VideoLimits(timeout_seconds=config.video_timeout)
    model = set_up_parts(model, config)
    keep_exact(model)
    name_wrapped_layers(model)
    return model.train(), processor


def _dataset(
    sources: Any, config: TrainConfig, processor: DynImgProcessor, seed: int | None, quarantine: str = QUARANTINE
) -> DynImgDataset:
    """`seed`: None for rows that are only evaluated."""
    return DynImgDataset(
        sources,
        processor,
        root=config.data_root,
        seed=seed if config.random_prompts else None,
        max_broken=config.max_broken,
        keep_composed=config.keep_composed,
        least_keep=None if seed is None else config.least_keep,
        keep_seed=seed or 0,
        quarantine=Path(config.output) / quarantine,
    )


def _fit_to_kinds(arguments: TrainingArguments, kinds: set[str]) -> None:
    if "text" in kinds and arguments.ddp_find_unused_parameters is None:
        arguments.ddp_find_unused_parameters = True  # a rank without a picture leaves the projector out, and DDP waits
    if {"video", "image"} <= kinds and arguments.per_device_train_batch_size > 1:
        raise ValueError(
            "the data holds videos and pictures, which do not mix in one batch; set per_device_train_batch_size=1 "
            "(global_batch_size stays what it is)"
        )


def _trainer(
    config: TrainConfig,
    arguments: Any,
    model: Any,
    processor: DynImgProcessor,
    dataset: DynImgDataset,
    unseen: DynImgDataset | None,
) -> Trainer:
    trainer_class: Any = Trainer
    if config.engine == "trl":
        from trl import SFTTrainer as trainer_class
    return trainer_class(
        model=model,
        args=arguments,
        data_collator=DynImgCollator(processor, max_length=config.max_length),
        train_dataset=dataset.as_hf(),
        eval_dataset=None if unseen is None else unseen.as_hf(),
        processing_class=processor,
    )


def _evaluation(config: TrainConfig, processor: DynImgProcessor) -> Evaluate | None:
    if config.eval_tasks is None:
        return None
    from dynimg_plugin.evaluation.during import evaluate_model

    return lambda model: evaluate_model(model, processor, str(config.eval_tasks), limit=config.eval_limit)


def _resume(config: TrainConfig, arguments: TrainingArguments) -> str | None:
    """The checkpoint to go on from, as asked by resume_from_checkpoint: true, auto, a folder, or nothing."""
    asked = config.arguments.get("resume_from_checkpoint")
    found = complete_checkpoint(Path(config.output))
    if asked in (None, False):
        if found is not None:
            raise ValueError(
                f"{config.output} holds {found.name} of an earlier run; give resume_from_checkpoint=true to go on "
                "with it, or another output"
            )
        return None
    if asked is True and found is None:
        raise ValueError(f"{config.output} holds no complete checkpoint; resume_from_checkpoint=auto starts anew then")
    if asked in (True, "auto"):
        return None if found is None else str(found)
    return str(asked)
