"""The parts of a model that can be trained: LoRA's targets, what is frozen, and the optimizer's parameter groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dynimg_plugin.patching import dynimg_config
from dynimg_plugin.towers import SLOTS
from dynimg_plugin.training.config import ATTENTION, TrainConfig

PARTS = {  # first match wins; the language model is what none of them names
    "lora": ("lora_",),
    "theta": (".theta_",),
    "slots": (".slot_embedding",),  # of fusion="tokens"
    "projector": ("multi_modal_projector",),
    "image_newline": ("image_newline",),  # no DynImg uses it: never trained
    "vision_tower": ("vision_tower",),
}


def part_of(name: str) -> str:
    """The part that a parameter belongs to: a key of PARTS, or language_model."""
    return next((part for part, words in PARTS.items() if any(word in name for word in words)), "language_model")


def lora_config(
    r: int = 64,
    alpha: int = 128,
    dropout: float = 0.05,
    targets: Sequence[str] = ATTENTION,
    *,
    parts: Sequence[str] = ("projector", "theta"),
) -> LoraConfig:
    """A peft LoraConfig for a patched model: LoRA in the decoder's layers alone, theta and projector trained beside it.

    A plain list of names would also hit the vision tower, and without modules_to_save theta would stay frozen.

    Args:
        targets: names of linear layers of a decoder layer.
        parts: what is trained and saved whole; leave "theta" out for DynImgConfig(rope_4d=False), and name "slots" too
            for DynImgConfig(fusion="tokens").
    """
    whole = {"theta": "rotary_emb", "projector": "multi_modal_projector", "slots": SLOTS}
    if odd := set(parts) - set(whole):
        raise ValueError(f"{', '.join(odd)} cannot be trained beside LoRA; allowed: {', '.join(whole)}")
    saved = [whole[part] for part in parts]
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf".*language_model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(targets)})",
        modules_to_save=saved or None,
        task_type="CAUSAL_LM",
    )


def set_up_parts(model: Any, config: TrainConfig) -> Any:
    """The patched model with LoRA around it, or with everything frozen but config.train_parts."""
    parts = trained_parts(model, config)
    if config.lora_r:
        lora = lora_config(config.lora_r, config.lora_alpha, config.lora_dropout, config.lora_targets, parts=parts)
        return get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(part_of(name) in parts)
    return model


def trained_parts(model: nn.Module, config: TrainConfig) -> list[str]:
    """config.train_parts without those that this model's DynImgConfig leaves out."""
    absent = {"theta": not uses_theta(model), "slots": not uses_slots(model)}
    return [part for part in config.train_parts if not absent.get(part)]


def keep_exact(model: nn.Module) -> None:
    """Trained weights in fp32, whatever the rest is in: bf16 would round small updates away."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def name_wrapped_layers(model: nn.Module) -> None:
    """Leave out classes that FSDP should wrap and that the model does not have: accelerate stops at them (SigLIP's
    pooling head, which LLaVA-OneVision goes without)."""
    there = {type(module).__name__ for module in model.modules()}
    for module in model.modules():
        if names := getattr(module, "_no_split_modules", None):
            module.__dict__["_no_split_modules"] = sorted(there.intersection(names))


def theta_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The thetas that are trained."""
    return [p for name, p in model.named_parameters() if p.requires_grad and part_of(name) == "theta"]


def parameter_groups(
    model: nn.Module, *, lr: float, theta_lr: float = 1e-2, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer in a loop of your own: theta apart, without weight decay.

    Biases and norms get no weight decay either.
    """
    theta = theta_parameters(model)
    others = [p for p in model.parameters() if p.requires_grad and not any(p is t for t in theta)]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in others if p.ndim < 2], "lr": lr, "weight_decay": 0.0},
        {"params": theta, "lr": theta_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def move_theta_apart(optimizer: torch.optim.Optimizer, model: nn.Module, theta_lr: float) -> None:
    """Give theta a group of its own in an optimizer that has not stepped yet."""
    theta = theta_parameters(model)
    if not theta:
        return
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if not any(p is t for t in theta)]
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    optimizer.add_param_group({"params": theta, "lr": theta_lr, "weight_decay": 0.0})


def uses_theta(model: nn.Module) -> bool:
    return dynimg_config(model).rope_4d


def uses_slots(model: nn.Module) -> bool:
    return dynimg_config(model).fusion == "tokens"


def theta_norms(model: nn.Module) -> dict[str, float]:
    """{"theta_t": norm, ...} of the trained thetas and slot embedding, gathered when they are sharded."""
    norms = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and part_of(name) in ("theta", "slots"):
            whole = parameter.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            norms[name.rpartition(".")[2]] = whole.norm().item()
    return norms
