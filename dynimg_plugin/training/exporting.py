"""Adapters in other shapes: merged into a whole checkpoint, or made from what LLaVA's own LoRA training wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoProcessor

from dynimg_plugin.compat import auto_class
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.loading import THETA, check_checkpoint, load
from dynimg_plugin.patching import apply_dynimg
from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.training.parts import lora_config

NAMES = {  # LLaVA's names -> those of transformers
    r"^(base_model\.model\.)?(model\.)?mm_projector\.0\.": "base_model.model.model.multi_modal_projector.linear_1.",
    r"^(base_model\.model\.)?(model\.)?mm_projector\.2\.": "base_model.model.model.multi_modal_projector.linear_2.",
    r"^base_model\.model\.model\.layers\.": "base_model.model.model.language_model.layers.",
}


def merge(adapter: str | Path, output: str | Path, *, base: str | None = None, lora_alpha: float | None = None) -> Path:
    """Write a whole checkpoint, theta included, that load() reads without adapter.

    Args:
        adapter: folder or hub id.
        base: the checkpoint it was trained on; by default the one that it names.
        lora_alpha: another strength of LoRA than in training, see load().
    """
    base = base or _adapter_config(adapter)["base_model_name_or_path"]
    dtype = AutoConfig.from_pretrained(base).dtype or torch.float32
    model, processor = load(base, adapter, dtype="float32", lora_alpha=lora_alpha)
    merged = model.merge_and_unload().to(dtype)  # theta stays fp32
    merged.save_pretrained(output)
    processor.save_pretrained(output)
    return Path(output)


def convert(folder: str | Path, output: str | Path, *, base: str) -> Path:
    """Make an adapter of LLaVA's LoRA output: adapter_model.* and non_lora_trainables.bin (the projector).

    theta starts at zero. Pickled files are read with weights_only=True.

    Args:
        folder: with adapter_config.json, adapter_model.bin or .safetensors, non_lora_trainables.bin.
        base: the transformers checkpoint of the same model, e.g. llava-hf/llava-1.5-7b-hf.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: weights that the base has no place for, or that are missing.
    """
    folder, output = Path(folder), Path(output)
    old = _adapter_config(folder)
    found = {**_tensors(folder, "adapter_model"), **_tensors(folder, "non_lora_trainables")}
    tensors = {_renamed(name): value.contiguous() for name, value in found.items()}
    check_checkpoint(base)
    base_config = AutoConfig.from_pretrained(base)
    with init_empty_weights(include_buffers=False):
        empty = auto_class(base_config.model_type).from_config(base_config)
    targets = sorted({match[1] for name in tensors if (match := re.search(r"\.(\w+)\.lora_A\.", name))})
    lora = lora_config(old["r"], old["lora_alpha"], old.get("lora_dropout", 0.0), targets)
    lora.base_model_name_or_path, lora.inference_mode = str(base), True
    wanted = get_peft_model_state_dict(get_peft_model(apply_dynimg(empty), lora), save_embedding_layers=False)
    tensors |= {name: torch.zeros(value.shape) for name, value in wanted.items() if THETA in name}
    _check_same(tensors, wanted, folder, base)
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "adapter_model.safetensors", {"format": "pt"})
    lora.save_pretrained(str(output))
    DynImgProcessor(AutoProcessor.from_pretrained(base), DynImgConfig()).save_pretrained(output)
    return output


def _adapter_config(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "adapter_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no adapter_config.json; give the folder of an adapter")
    return json.loads(path.read_text("utf-8"))


def _tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    if (folder / f"{stem}.safetensors").is_file():
        return load_file(folder / f"{stem}.safetensors")
    if not (folder / f"{stem}.bin").is_file():
        raise FileNotFoundError(
            f"{folder} has neither {stem}.safetensors nor {stem}.bin; LLaVA's LoRA training writes it"
        )
    return torch.load(folder / f"{stem}.bin", map_location="cpu", weights_only=True)


def _renamed(name: str) -> str:
    for pattern, new in NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, new, name)
    return name


def _check_same(given: dict[str, Tensor], wanted: dict[str, Tensor], folder: Path, base: str) -> None:
    odd = [
        f"{name} {'has no place' if name in given else 'is missing'}" for name in sorted(given.keys() ^ wanted.keys())
    ]
    both = sorted(given.keys() & wanted.keys())
    odd += [
        f"{n} is {tuple(given[n].shape)}, not {tuple(wanted[n].shape)}"
        for n in both
        if given[n].shape != wanted[n].shape
    ]
    if odd:
        raise ValueError(f"{folder} does not fit {base}: {'; '.join(odd[:5])}")
