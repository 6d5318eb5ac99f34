"""`dynimg train`, `dynimg merge` and `dynimg convert`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dynimg_plugin.cli_options import LoraAlpha, new_folder


def train(
    config: Annotated[str, typer.Argument(help="YAML file, or a preset: lora_default | pllava_lora | paper_full")],
    option: Annotated[
        list[str] | None, typer.Argument(help="key=value: an option of TrainConfig, DynImgConfig or TrainingArguments")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only print what would be trained, and its memory")
    ] = False,
) -> None:
    """Fine-tune a checkpoint with DynImgs, e.g. dynimg train lora_default base=DIR data=train.json output=adapter."""
    from dynimg_plugin.training import plan, read_config
    from dynimg_plugin.training import train as run

    chosen = read_config(config, option or [])
    if os.environ.get("RANK", "0") == "0":
        typer.echo(plan(chosen, name=Path(config).stem))
    if dry_run:
        return
    result = run(chosen)
    typer.echo(f"train loss {result.metrics['train_loss']:.4f}, {len(result.broken)} broken rows -> {result.output}")


def merge(
    adapter: Annotated[Path, typer.Argument(help="folder of an adapter")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
    base: Annotated[str | None, typer.Option(help="its checkpoint; by default the one that it names")] = None,
    lora_alpha: LoraAlpha = None,
) -> None:
    """Merge an adapter into its base: a whole checkpoint, theta included."""
    from dynimg_plugin.training.exporting import merge as run

    typer.echo(f"merged -> {run(adapter, new_folder(output), base=base, lora_alpha=lora_alpha)}")


def convert(
    folder: Annotated[Path, typer.Argument(help="LLaVA's LoRA output with non_lora_trainables.bin")],
    base: Annotated[str, typer.Option(help="the same model in transformers' format, hub id or folder")],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder to write")],
) -> None:
    """Make an adapter (safetensors, theta = 0) of what LLaVA's own LoRA training wrote."""
    from dynimg_plugin.training.exporting import convert as run

    typer.echo(f"adapter -> {run(folder, new_folder(output), base=base)}")
