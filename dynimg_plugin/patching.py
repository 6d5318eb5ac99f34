"""Bring DynImg to a loaded model: instances only, undoable, never a class or a module of somebody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import MethodType
from typing import Any

from transformers.utils import logging

from dynimg_plugin.attention import fusable, fuse, is_fused
from dynimg_plugin.compat import expands_by_patches, further_rotaries
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.families import ENTRY_POINTS, Patch, find_patch, supported_families
from dynimg_plugin.layout import NEWLINE
from dynimg_plugin.mrope import ENTRY as ROPE_INDEX
from dynimg_plugin.mrope import rope_index
from dynimg_plugin.ops import Implementation, describe, require
from dynimg_plugin.overriding import dynimg_features, finish_angles, with_extra_inputs, with_rows_expanded
from dynimg_plugin.rope import AXES, DynImgRotaryEmbedding, SameTheta
from dynimg_plugin.session import Session, core_of
from dynimg_plugin.towers import SLOTS, PromptSlots, find_tower

__all__ = [
    "Description",
    "Patch",
    "apply_dynimg",
    "describe_dynimg",
    "dynimg_config",
    "find_patch",
    "remove_dynimg",
    "supported_families",
]

PREPARE, EXPAND = "prepare_inputs_for_generation", "_expand_inputs_for_generation"
OF_LLAVA = "prepare_inputs_labels_for_multimodal"  # a method of all models of the llava package, and of its forks
Overrides = dict[tuple[str, str], Callable[..., Any]]
logger = logging.get_logger(__name__)


def apply_dynimg(
    model: Any,
    config: DynImgConfig | None = None,
    *,
    patch: Patch | None = None,
    implementation: Implementation = "auto",
) -> Any:
    """Patch this model instance for DynImg and return it. Its weights stay; on day 0 its text logits are the same bits.

    Calling it again with the same arguments is a no-op. Models of the `llava` package itself are patched as
    `dynimg_plugin.patches.llava_native` says.

    Args:
        config: DynImgConfig() when None; grid and patch size are taken from the model.
        patch: names of a family that is not built in.
        implementation: of 4D RoPE on q and k: "native" (C++, CUDA), "triton", "reference" (PyTorch), or "auto", the
            first of these that is there for the tensors' device. All give the same bits at theta = 0.

    Raises:
        RuntimeError: the implementation that was asked for is missing, or this family's attention cannot take it.
        ValueError: unknown family, a rotary embedding that cannot be wrapped, a tower that cannot take
            fusion="tokens", or the model is patched already with another config.
        TypeError: it is a peft model.
    """
    require(implementation)
    refuse_peft(model)
    if patch is None and hasattr(model, OF_LLAVA):
        return import_module(f"{ENTRY_POINTS}.llava_native").apply_dynimg(model, config, implementation=implementation)
    patch = patch or find_patch(model.config.model_type)
    grid, patch_size = patch.tower(model.config)
    newline = getattr(model.config, "mm_newline_position", None)
    config = (config or DynImgConfig()).on_tower(grid=grid, patch_size=patch_size, newline=newline)
    core_class = type(model.get_submodule(patch.core))
    overrides = {
        (patch.core, patch.entry): dynimg_features(core_class, patch.entry),
        ("", PREPARE): with_extra_inputs(type(model)),
    }
    if expands_by_patches(type(model), core_class):
        overrides["", EXPAND] = with_rows_expanded(type(model))
    if not config.keeps_all and "M-RoPE" in patch.rope:
        overrides[patch.core, ROPE_INDEX] = rope_index(core_class, config)
    return install(model, Session.of(patch, config, implementation), overrides)


def refuse_peft(model: Any) -> None:
    """Raise a TypeError for a peft model: theta must be there before peft wraps it."""
    if _is_peft(model):
        raise TypeError("this is a peft model: call apply_dynimg() on the base model first, then get_peft_model()")


def install(model: Any, session: Session, overrides: Overrides) -> Any:
    """Give this instance the rotary wrapper, the hooks and methods in place of its own, and return it.

    Args:
        overrides: {(path of a module in the model, its method): function that takes the module first}.

    Raises:
        ValueError: it is patched already with another config, has no newline token, or other code replaced a method.
    """
    core, config = model.get_submodule(session.patch.core), session.config
    if old := getattr(core, "dynimg", None):
        if old.config != config or session.implementation not in ("auto", old.implementation):
            raise ValueError(
                f"this model is patched already with {old.config}, implementation={old.implementation!r}; "
                "call remove_dynimg(model) first"
            )
        logger.info("apply_dynimg: this model is patched already, nothing to do")
        return model
    if NEWLINE in session.layout.order and not hasattr(core, "image_newline"):
        raise ValueError(
            f"newline={config.newline!r}, but {type(model).__name__} has no newline token (image_newline); allowed for "
            "it: 'auto', 'no_token'"
        )
    owners = {place: model.get_submodule(place[0]) for place in overrides}
    for (_, name), owner in owners.items():  # before anything is changed
        if name in owner.__dict__:
            raise ValueError(
                f"{type(owner).__name__}.{name} of this instance was replaced by other code; undo that first"
            )
    slots = _prompt_slots(core, session)
    if config.rope_4d:
        _wrap_rotary(core, session)
    if slots is not None:
        core.add_module(SLOTS, slots)
    for place, owner in owners.items():  # bound to the instance, so that a copy of the model uses its own weights
        owner.__dict__[place[1]] = MethodType(overrides[place], owner)
    session.overrides = list(overrides)
    session.handles += [
        core.register_forward_pre_hook(session.before, with_kwargs=True),
        core.register_forward_hook(session.after, with_kwargs=True, always_call=True),
    ]
    core.dynimg = session
    return model


def remove_dynimg(model: Any) -> Any:
    """Undo apply_dynimg(): the model's submodules and methods are its own again, bit for bit. Returns the model."""
    if _is_peft(model):
        raise TypeError("this is a peft model: take the adapter off first, model = model.unload()")
    core, session = core_of(model)
    decoder = core.get_submodule(session.patch.language_model)
    rotary = decoder.get_submodule(session.patch.rotary)
    if session.config.rope_4d and not isinstance(rotary, DynImgRotaryEmbedding):
        raise TypeError(f"its rotary embedding is in use by {type(rotary).__name__}; take the adapter off first")
    if not all(is_fused(attention) for attention in session.attention(core)):
        raise TypeError("its attention's forward is in use by other code (accelerate's hooks?); take that off first")
    if session.config.fusion == "tokens" and not isinstance(getattr(core, SLOTS), PromptSlots):
        raise TypeError(f"its {SLOTS} are in use by {type(getattr(core, SLOTS)).__name__}; take the adapter off first")
    for handle in session.handles:
        handle.remove()
    for attention in session.attention(core):
        del attention.__dict__["forward"]
    if session.config.rope_4d:
        for name in further_rotaries(decoder, session.patch.rotary):
            decoder.set_submodule(name, decoder.get_submodule(name).base)
        decoder.set_submodule(session.patch.rotary, rotary.base)
    if session.config.fusion == "tokens":
        delattr(core, SLOTS)
    for path, name in session.overrides:
        del model.get_submodule(path).__dict__[name]
    del core.__dict__["dynimg"]
    return model


def _is_peft(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _prompt_slots(core: Any, session: Session) -> PromptSlots | None:
    """The slot embedding of fusion="tokens", on the tower's device."""
    if session.config.fusion != "tokens":
        return None
    tower = find_tower(core, session.patch, session.layout.grid)
    return PromptSlots(session.layout, tower.width, tower.positions().device)


def _wrap_rotary(core: Any, session: Session) -> None:
    patch = session.patch
    decoder = core.get_submodule(patch.language_model)
    layers = decoder.get_submodule(patch.layers)
    per_layer = session.config.theta_scope == "per_layer"
    wrapper = DynImgRotaryEmbedding(decoder.get_submodule(patch.rotary), num_layers=len(layers) if per_layer else None)
    _fuse_attention(core, session, layers, wrapper)
    for name in further_rotaries(decoder, patch.rotary):
        decoder.set_submodule(name, SameTheta(decoder.get_submodule(name), decoder, patch.rotary))
    decoder.set_submodule(patch.rotary, wrapper)
    if per_layer:
        session.handles += [
            layer.register_forward_pre_hook(partial(finish_angles, index=i, layout=wrapper.layout), with_kwargs=True)
            for i, layer in enumerate(layers)
        ]


def _fuse_attention(core: Any, session: Session, layers: Any, wrapper: DynImgRotaryEmbedding) -> None:
    """Let the attention layers run the operator where they can; the wrapper's PyTorch path serves the others."""
    if session.implementation == "reference":
        return
    modules, session.not_fused = fusable(layers, wrapper)
    if session.not_fused and session.implementation != "auto":
        raise RuntimeError(
            f"implementation={session.implementation!r} cannot run in this model: {session.not_fused}; "
            "implementation='auto' takes the PyTorch path"
        )
    for path, interleaved in modules.items():
        parts = (session.patch.language_model, session.patch.layers, path)
        session.fused.append(".".join(filter(None, parts)))  # the core may be the language model itself
        fuse(core.get_submodule(session.fused[-1]), interleaved)
    wrapper.implementation = session.implementation if modules else "reference"


@dataclass(frozen=True)
class Description:
    """What apply_dynimg() did to a model; str() is a table.

    slot_norm: how far the slot embedding of fusion="tokens" has moved; None with another fusion.
    """

    family: str
    config: DynImgConfig
    rotary: str
    theta_norms: dict[str, float]
    implementation: str
    slot_norm: float | None = None

    def __str__(self) -> str:
        config, prompts = self.config, self.config.frames_per_image - 1
        budget = "" if config.keeps_all else f", {config.keep:.0%} kept by {config.keep_policy}"
        norms = ", ".join(f"{axis} {norm:.3g}" for axis, norm in self.theta_norms.items()) or "off"
        slots = "" if self.slot_norm is None else f", attention {config.prompt_attention}, slots {self.slot_norm:.3g}"
        return "\n".join(
            [
                f"family        {self.family}",
                f"DynImgs       {config.num_images} x (1 key + {prompts} prompts), fusion {config.fusion}{slots}",
                f"tower grid    {config.grid} x {config.grid} patches of {config.patch_size} px",
                f"tokens        {config.tokens_per_video} per video, pooled {config.pool}{budget}",
                f"rotary        {self.rotary}",
                f"theta norms   {norms}",
                f"4D RoPE by    {self.implementation}",
            ]
        )


def describe_dynimg(model: Any) -> Description:
    """What is patched, with which config, and how far theta has moved. ValueError when the model is not patched."""
    core, session = core_of(model)
    active = _active_rotary(core, session)
    norms = {} if active is None else {a: t.detach().norm().item() for a, t in zip(AXES, active.thetas, strict=True)}
    slots = _active(getattr(core, SLOTS)) if session.config.fusion == "tokens" else None
    return Description(
        family=session.patch.model_type,
        config=session.config,
        rotary="unchanged" if active is None else f"{type(active.base).__name__} ({active.layout})",
        theta_norms=norms,
        implementation="off" if active is None else _running(session, active),
        slot_norm=None if slots is None else slots.slot_embedding.detach().norm().item(),
    )


def _running(session: Session, rotary: DynImgRotaryEmbedding) -> str:
    if session.not_fused:
        return f"reference (PyTorch): {session.not_fused}"
    return describe(session.implementation, rotary.theta_t.device)


def _active_rotary(core: Any, session: Session) -> DynImgRotaryEmbedding | None:
    if not session.config.rope_4d:
        return None
    return _active(core.get_submodule(session.patch.language_model).get_submodule(session.patch.rotary))


def _active(module: Any) -> Any:
    """The module of ours that runs: under peft the active adapter's copy, or the original while adapters are off."""
    if isinstance(module, DynImgRotaryEmbedding | PromptSlots):
        return module
    return module.original_module if module.disable_adapters else module.modules_to_save[module.active_adapters[0]]


def dynimg_config(model: Any) -> DynImgConfig:
    """The config of a patched model, grid and patch size filled in."""
    return core_of(model)[1].config
