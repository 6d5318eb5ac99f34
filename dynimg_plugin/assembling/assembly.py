"""Puts the parts together: tower -> MLP projector -> (pooling by DynImg) -> language model, in LLaVA's class.

LLaVA's class is the paper's architecture and nothing more: LLaVA-OneVision's adds newline tokens, tiles and a way for
videos of its own, of which DynImgs use none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from dynimg_plugin.assembling.language import load_language, load_tokenizer, read_language
from dynimg_plugin.assembling.towers import Tower, read_tower
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.original import make_room
from dynimg_plugin.patching import apply_dynimg, dynimg_config, remove_dynimg
from dynimg_plugin.processing import DynImgProcessor


@dataclass(frozen=True)
class Parts:
    """Parameters of an assembled model by part, each with a word on what it is; str() is a table."""

    vision_tower: tuple[int, str]
    projector: tuple[int, str]
    language_model: tuple[int, str]
    theta: tuple[int, str]

    @property
    def total(self) -> int:
        return sum(count for count, _ in vars(self).values())

    def __str__(self) -> str:
        rows = [f"{name.replace('_', ' '):<15}{count:>15,}  {what}" for name, (count, what) in vars(self).items()]
        return "\n".join([*rows, f"{'all':<15}{self.total:>15,}  {2 * self.total / 1e9:.1f} GB in bf16"])


def assemble(
    vision: str,
    language: str,
    output: str | Path,
    *,
    seed: int = 0,
    dtype: str | torch.dtype = "auto",
    layer: int = -2,
    config: DynImgConfig | None = None,
) -> Parts:
    """Write a LLaVA checkpoint of a vision tower, a fresh projector and a language model into `output`.

    Tower and language model keep their weights; the projector is LLaVA's, two linear layers with GELU between, and
    starts as torch's linear layers do. load(), `dynimg train` and `llava_dynimg` take the folder as any other base.

    Args:
        vision: the tower, see read_tower(). language: hub id or folder of a causal language model.
        output: a new folder.
        seed: of the projector's weights.
        dtype: of all weights; "auto" is the language model's.
        layer: of the tower, see read_tower(); what comes after it is left out.
        config: of the DynImgs, written beside the weights; DynImgConfig() when None.

    Raises:
        ValueError: a part of a kind that does not fit; the message says what is allowed. Nothing is written then.
        OSError: a part that cannot be had.
    """
    tower, text = read_tower(vision, layer), read_language(language)
    model = remove_dynimg(empty_model(tower, text, config))
    tokenizer = load_tokenizer(language)
    processor = build_processor(tower, tokenizer)
    decoder = load_language(language, dtype)
    put_together(model, tower.load(decoder.dtype), fresh_projector(model, seed), decoder)
    model.config.image_token_id = processor.image_token_id
    make_room(model, len(tokenizer))
    ends = decoder.generation_config.eos_token_id or tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False)
    model.save_pretrained(output)
    DynImgProcessor(processor, config).save_pretrained(output)
    return describe_parts(apply_dynimg(model, config), tower)


def count_parts(vision: str, language: str, *, layer: int = -2, config: DynImgConfig | None = None) -> Parts:
    """What assemble() would put together, counted on the meta device: configs are read, weights are not.

    Raises:
        ValueError, OSError: as assemble().
    """
    tower, text = read_tower(vision, layer), read_language(language)
    return describe_parts(empty_model(tower, text, config), tower)


def empty_model(tower: Tower, text: Any, config: DynImgConfig | None) -> Any:
    """The patched model on the meta device.

    Raises:
        ValueError: DynImgs cannot be laid out on the tower's grid.
    """
    with init_empty_weights(include_buffers=False):  # 4D RoPE looks at the rotary buffers
        model: Any = LlavaForConditionalGeneration(llava_config(tower, text))
        try:
            return apply_dynimg(model, config)
        except ValueError as error:
            raise ValueError(f"{tower.source} with a {text.model_type}: {error}") from error


def describe_parts(model: Any, tower: Tower) -> Parts:
    """Count a patched model's parts."""
    text, sizes, core = model.config.text_config, dynimg_config(model), model.model
    thetas = [value.numel() for name, value in model.named_parameters() if ".theta_" in name]
    kept, depth = tower.layers
    wide = tower.config.hidden_size
    head = 0 if text.tie_word_embeddings else count(model.lm_head)
    return Parts(
        vision_tower=(
            count(core.vision_tower),
            f"{tower.source}, {kept} of {depth} layers, {wide} wide, {sizes.grid} x {sizes.grid} patches of "
            f"{sizes.patch_size} px",
        ),
        projector=(
            count(core.multi_modal_projector),
            f"{wide} -> {text.hidden_size} -> {text.hidden_size}, GELU; then pooled to {sizes.pooled_size} x "
            f"{sizes.pooled_size}, {sizes.tokens_per_video} tokens per video",
        ),
        language_model=(
            count(core.language_model) - sum(thetas) + head,
            f"{text.model_type}, {text.num_hidden_layers} layers, {text.hidden_size} wide, {text.vocab_size} tokens",
        ),
        theta=(sum(thetas), f"t, h, w of {thetas[0]} each, zero at the start" if thetas else "none"),
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def llava_config(tower: Tower, text: Any) -> LlavaConfig:
    """LLaVA's config of both; the tower ends at the layer that is read, so the last one is taken."""
    for part in (tower.config, text):
        part.name_or_path = ""  # may be a folder of this machine
    return LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_seq_length=(tower.config.image_size // tower.config.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy=tower.strategy,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def fresh_projector(model: Any, seed: int) -> nn.Module:
    """LLaVA's projector as torch initialises its two layers; the same seed gives the same weights in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model.model.multi_modal_projector)(model.config)


def put_together(model: Any, tower: nn.Module, projector: nn.Module, decoder: Any) -> None:
    """Set the parts in the place of the empty ones of the same names and shapes."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.model.vision_tower = tower
    model.model.multi_modal_projector = projector.to(decoder.dtype)
    model.model.language_model, model.lm_head = decoder.model, decoder.lm_head
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if odd := sorted(name for name, _ in expected.items() ^ found.items()):
        raise ValueError(f"the loaded weights are not those of the configs: {', '.join(odd[:5])}")


def build_processor(tower: Tower, tokenizer: Any) -> LlavaProcessor:
    """LLaVA's processor: pictures resized to the tower's square, its mean and std; one <image> per picture."""
    side = tower.config.image_size
    return LlavaProcessor(
        SiglipImageProcessor(size={"height": side, "width": side}, **tower.normalisation()),
        tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=tower.strategy,
        num_additional_image_tokens=int(tower.strategy == "default"),
        chat_template=tokenizer.chat_template,
    )
