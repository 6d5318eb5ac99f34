"""What a run trains and roughly how much GPU memory it takes, before any weight is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig

from dynimg_plugin.compat import auto_class
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.patching import apply_dynimg, dynimg_config
from dynimg_plugin.session import core_of
from dynimg_plugin.towers import find_tower
from dynimg_plugin.training.config import TrainConfig
from dynimg_plugin.training.parts import part_of, set_up_parts, trained_parts

GB = 1e9
TEXT = 128  # tokens of question and answer


@dataclass(frozen=True)
class Plan:
    """What is trained and the memory of one device that holds the whole model; str() is a table.

    Attributes:
        trained, total: parameters by part.
        weights, optimizer, activations: bytes: frozen weights in bf16, trained ones in fp32; gradients and Adam's two
            states in fp32; what the backward pass keeps. An estimate: fragmentation and the framework come on top.
    """

    preset: str
    trained: Counter[str]
    total: Counter[str]
    weights: int
    optimizer: int
    activations: int

    def __str__(self) -> str:
        lines = [f"{self.preset}: trained parameters"]
        for part in sorted(self.total, key=lambda part: -self.total[part]):
            lines.append(f"  {part:<16}{self.trained[part]:>15,} of {self.total[part]:>15,}")
        share = self.trained.total() / max(1, self.total.total())
        lines.append(f"  {'all':<16}{self.trained.total():>15,} of {self.total.total():>15,} ({share:.2%})")
        parts = {"weights": self.weights, "gradients and Adam": self.optimizer, "activations": self.activations}
        lines.append("memory of one device without sharding, estimated")
        lines += [f"  {name:<20}{size / GB:>7.1f} GB" for name, size in parts.items()]
        return "\n".join([*lines, f"  {'together':<20}{sum(parts.values()) / GB:>7.1f} GB"])


def plan(config: TrainConfig, *, name: str = "plan", model_config: Any = None) -> Plan:
    """Plan a run from the checkpoint's config.json alone; its weights are not needed.

    Args:
        name: for the table's first line.
        model_config: a transformers config in place of that of `config.base`.
    """
    model_config = model_config or AutoConfig.from_pretrained(config.base)
    with init_empty_weights(include_buffers=False):
        model = auto_class(model_config.model_type).from_config(model_config)
        apply_dynimg(model, DynImgConfig.from_dict(config.dynimg))
        model = set_up_parts(model, config)
    trained, total = Counter[str](), Counter[str]()
    for parameter_name, parameter in model.named_parameters():
        if "original_module" not in parameter_name:  # peft's second copy, small
            total[part_of(parameter_name)] += parameter.numel()
            trained[part_of(parameter_name)] += parameter.numel() * parameter.requires_grad
    learned = trained.total()
    return Plan(
        name,
        trained,
        total,
        weights=2 * (total.total() - learned) + 4 * learned,
        optimizer=12 * learned,
        activations=activations(model, config),
    )


def activations(model: torch.nn.Module, config: TrainConfig) -> int:
    """Bytes that a step keeps: bf16 states between layers, one layer's inner states or all layers', and the logits.

    A decoder layer keeps about 34 values per token and hidden unit (Korthikanti et al., 2022); with activation
    checkpointing only its input, and one layer's inner states at a time. A trained slot embedding needs the
    same of the vision tower's layers. Logits are kept in bf16 and twice in fp32.
    """
    text = model.config.get_text_config()  # type: ignore[union-attr, operator]
    videos = config.arguments.get("per_device_train_batch_size", 8)
    dynimg = dynimg_config(model)
    tokens = videos * (dynimg.tokens_per_video + TEXT)
    checkpointing = bool(config.arguments.get("activation_checkpointing"))
    kept = _kept(tokens, text.hidden_size, text.num_hidden_layers, checkpointing) + 10 * tokens * text.vocab_size
    if "slots" in trained_parts(model, config):
        core, session = core_of(model)
        layout, tower = session.layout, find_tower(core, session.patch, session.layout.grid)
        patches = videos * dynimg.num_images * layout.rows * layout.grid
        kept += _kept(patches, tower.width, tower.depth, checkpointing)
    return kept


def _kept(tokens: int, width: int, layers: int, checkpointing: bool) -> int:
    inner = 34 * tokens * width
    return 2 * tokens * width * layers + inner if checkpointing else inner * layers
