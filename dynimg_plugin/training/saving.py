"""What a run leaves behind: the adapter folder or a whole checkpoint, each with dynimg_config.json and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from huggingface_hub import upload_folder
from safetensors import safe_open
from torch import nn
from transformers import Trainer

from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.training.config import TrainConfig
from dynimg_plugin.training.parts import trained_parts, uses_theta

STATE = "trainer_state.json"  # the trainer writes it after everything else


def complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint-N in `folder` that was written to its end."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{STATE}") if path.parent.name[11:].isdigit()]
    return max(found, key=lambda path: int(path.name[11:]), default=None)


def check_adapter(model: Any, folder: Path) -> None:
    """Stop when an adapter was saved without all of its weights, which peft does without a word behind wrappers."""
    file = folder / "adapter_model.safetensors"
    if not hasattr(model, "peft_config") or not file.is_file():
        return
    with safe_open(file, "pt") as tensors:
        saved = len(list(tensors.keys()))
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if saved != trained:
        raise ValueError(
            f"{file} holds {saved} of {trained} trained weights; with FSDP set fsdp_activation_checkpointing: false "
            "and use activation_checkpointing=true instead"
        )


def save_result(trainer: Trainer, processor: DynImgProcessor, config: TrainConfig, folder: Path) -> None:
    """Write weights, processor, dynimg_config.json and README.md; under several processes all must call it."""
    trainer.save_model(str(folder), _internal_call=True)  # does not push yet
    if trainer.is_world_process_zero():
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the checkpoints keep it
        check_adapter(trainer.model, folder)
        processor.save_pretrained(folder)
        (folder / "README.md").write_text(model_card(trainer, config, folder.name), "utf-8")
        if trainer.args.push_to_hub:
            upload_folder(
                repo_id=str(trainer.hub_model_id), folder_path=folder, ignore_patterns=["checkpoint-*", "*.jsonl"]
            )


def model_card(trainer: Trainer, config: TrainConfig, name: str) -> str:
    """README.md for the hub: what it is, how to load it, how it was made. Scores are for whoever measured them."""
    adapter = bool(config.lora_r)
    arguments, model = cast(Any, trainer.args), cast(nn.Module, trainer.model)
    parts = trained_parts(model, config)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    loading = f'load("{config.base}", "{name}")' if adapter else f'load("{name}")'
    chosen = {**config.dynimg, **config.arguments}
    return "\n".join(
        [
            "---",
            f"library_name: {'peft' if adapter else 'transformers'}",
            *([f"base_model: {config.base}"] if not Path(config.base).exists() else []),
            "pipeline_tag: video-text-to-text",
            f"tags: [dynimg{', lora' if adapter else ''}]",
            "---",
            "",
            f"# {name}",
            "",
            f"{'A peft adapter for' if adapter else 'A checkpoint made from'} `{config.base}` with DynImgs"
            f"{' and learnable 4D RoPE' if uses_theta(model) else ''} (arXiv 2507.15569), trained with `dynimg train`.",
            "",
            "```python",
            "from dynimg_plugin import load",
            "",
            f"model, processor = {loading}",
            "```",
            "",
            "| | |",
            "|---|---|",
            f"| data | {', '.join(config.data)} |",
            f"| steps | {trainer.state.global_step} |",
            f"| trained | {', '.join((*(['LoRA r ' + str(config.lora_r)] if adapter else []), *parts))} |",
            f"| learning rate | {arguments.learning_rate:g}, theta {config.theta_lr:g} |",
            f"| seed | {arguments.seed} |",
            *([f"| loss, first and last logged | {losses[0]:.4f}, {losses[-1]:.4f} |"] if losses else []),
            *(f"| {key} | {value} |" for key, value in sorted(chosen.items()) if key not in ("learning_rate", "seed")),
            "",
        ]
    )
