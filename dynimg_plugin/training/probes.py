"""Checks before the first step: what would leave theta untrained without a word stops the run with the way out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dynimg_plugin.session import core_of
from dynimg_plugin.towers import SLOTS

LIGER = "with Liger set liger_kernel_config={'rope': False}, with hub kernels leave use_kernels off"


def check_checkpointing(model: nn.Module, arguments: Any) -> None:
    """Reentrant checkpointing cannot go back through (cos, sin), which all layers share.

    Raises:
        ValueError: it is asked for.
    """
    newer = hasattr(arguments, "activation_checkpointing_kwargs")
    option = "activation_checkpointing_kwargs" if newer else "gradient_checkpointing_kwargs"
    asked = getattr(arguments, option) or {}
    functions = [getattr(m, "_gradient_checkpointing_func", None) for m in model.modules()]
    given = [getattr(f, "keywords", {}).get("use_reentrant") for f in functions if f is not None]
    if asked.get("use_reentrant") or any(given):
        raise ValueError(
            "use_reentrant=True cannot train theta (backward through a freed graph); set "
            f"{option}={{'use_reentrant': False}}"
        )


def check_slots(model: nn.Module) -> None:
    """ValueError when the slot embedding of fusion="tokens" is frozen."""
    core, session = core_of(model)
    if session.config.fusion == "tokens" and not any(p.requires_grad for p in getattr(core, SLOTS).parameters()):
        raise ValueError(
            "the slot embedding of fusion='tokens' is frozen: the tower cannot learn to tell prompts apart; with peft "
            f"use lora_config(parts=('projector', 'theta', 'slots')) or modules_to_save=['{SLOTS}', ...]"
        )


def check_gradient(model: nn.Module) -> None:
    """One decoder layer on made-up states: theta must be trainable, and get a gradient through its attention.

    Raises:
        ValueError: theta is frozen, or the attention runs a fused rotary kernel without gradient for (cos, sin).
    """
    core, session = core_of(model)
    rotary = next((r for r in session.rotary(core) if r.theta_t.requires_grad), None)
    if rotary is None:
        raise ValueError(
            "theta is frozen; with peft use lora_config() or modules_to_save=['rotary_emb', ...], without it "
            "requires_grad_(True), or train with DynImgConfig(rope_4d=False)"
        )
    decoder = core.get_submodule(session.patch.language_model)
    layer = decoder.get_submodule(session.patch.layers)[0]
    gradients = _gradients(layer, rotary, decoder.config)
    if any(gradient is None or not gradient.abs().sum() > 0 for gradient in gradients):
        raise ValueError(
            f"{type(layer).__name__} gives theta no gradient: its rotary embedding was replaced by a fused kernel that "
            f"returns none for (cos, sin); {LIGER}"
        )


def _gradients(layer: nn.Module, rotary: Any, config: Any) -> tuple[torch.Tensor | None, ...]:
    weight = next(p for p in layer.parameters() if p.ndim == 2)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1, 4, config.hidden_size, generator=generator).to(weight.device, weight.dtype)
    steps = torch.arange(4, device=weight.device)
    rotary.coordinates = torch.stack([steps, steps, steps], -1)[None].float()
    try:
        with torch.enable_grad(), torch.autocast(weight.device.type, torch.bfloat16, weight.dtype != torch.float32):
            angles = rotary(states, steps[None])
            out = layer(states, position_embeddings=angles, attention_mask=None, position_ids=steps[None])
        out = out[0] if isinstance(out, tuple) else out
        target = (out.float() * torch.randn(out.shape, generator=generator).to(out.device)).sum()
        return torch.autograd.grad(target, rotary.thetas, allow_unused=True)
    finally:
        rotary.coordinates = None


def check_travel(theta_lr: float, steps: int) -> str | None:
    """A warning when theta cannot get far: Adam moves it by about learning rate x steps, half of it under a schedule.

    The limit is our choice, from the miniature study (`theta_lr`, 2,400 steps, shuffled tokens): of the 4.9 points that
    4D RoPE brings at 12 in all, 1.2 brings as much, 0.12 brings 2.0, and 0.012 none (five seeds).
    """
    travel = theta_lr * steps * 0.5
    if travel >= 1:
        return None
    return (
        f"theta can travel about {travel:.2g} (theta_lr {theta_lr:g} x {steps} steps x 0.5); in our miniature "
        f"study 1.2 was enough, 0.12 gave less than half of its effect and 0.012 none. Train longer or raise theta_lr"
    )


def check_theta_group(model: nn.Module, optimizer: torch.optim.Optimizer, theta: list[nn.Parameter]) -> None:
    """Theta must be in one group of its own, without weight decay.

    Raises:
        ValueError: it is not.
    """
    groups = [g for g in optimizer.param_groups if any(p is t for p in g["params"] for t in theta)]
    alone = len(groups) == 1 and len(groups[0]["params"]) == len(theta)
    if not alone or groups[0].get("weight_decay"):
        raise ValueError(
            "theta is not in a parameter group of its own without weight decay; build your optimizer from "
            "parameter_groups(model, lr=..., theta_lr=...), or leave optimizers out and let the callback do it"
        )
