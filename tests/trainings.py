"""Helpers for tests that train: tiny bases whose head can speak, a data file, and the shortest run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dynimg_plugin.tiny import build_tiny
from dynimg_plugin.training import TrainResult, read_config, train

QUICK: dict[str, Any] = {
    "preset": "lora_default",
    "bf16": False,
    "use_cpu": True,
    "activation_checkpointing": False,
    "lora_r": 8,
    "lora_dropout": 0.0,
    "global_batch_size": None,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "max_steps": 3,
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "disable_tqdm": True,
    "num_images": 1,
}


def speaking_base(family: str, folder: Path) -> Path:
    """A tiny checkpoint with larger logits than a fresh one: with a small head no answer can become likely."""
    model, processor = build_tiny(family)
    model.lm_head.weight.data *= 10
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def quick(base: Path, output: Path, **options: Any) -> TrainResult:
    return train(read_config({**QUICK, "base": str(base), "output": str(output), **options}))


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), "utf-8")
    return path


def talk(question: str, answer: str = "yes", **media: Any) -> dict[str, Any]:
    """A row in LLaVA's format."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **media}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert files, folder
    return {name: value for file in files for name, value in load_file(file).items()}


def largest_difference(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def losses(result: TrainResult) -> list[float]:
    return [entry["loss"] for entry in result.history if "loss" in entry]
