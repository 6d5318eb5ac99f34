"""Qwen2-VL: any-resolution tower that merges 2 x 2 patches, so a DynImg of 336 px is 12 x 12 tokens without pooling."""

from __future__ import annotations

from typing import Any

import torch
from einops import repeat
from torch import Tensor

from dynimg_plugin.compat import bare, rope_fields, takes_token_types
from dynimg_plugin.families import Patch
from dynimg_plugin.placeholders import Mask, Placeholders

SIDE = 12  # merged cells: any resolution is native, so the paper's grid itself is taken
BETWEEN = "<|vision_end|><|vision_start|>"


def geometry(config: Any) -> tuple[int, int]:
    """12 x 12 cells of 2 x 2 patches: 28 px with patches of 14."""
    return SIDE, config.vision_config.patch_size * config.vision_config.spatial_merge_size


def canvas(base: Any) -> tuple[int, int]:
    """As geometry(), from the processor: (336, 12)."""
    return SIDE * base.image_processor.patch_size * base.image_processor.merge_size, SIDE


def run_tower(core: Any, pixels: Tensor) -> tuple[Tensor, list[Tensor] | None]:
    """The tower's features (m * 144, c), and those for deeper layers, of square images (m, 3, H, W).

    They are cut into patches as the family's image processor does.
    """
    vision = core.config.vision_config
    patches = repeat(
        pixels.to(core.visual.dtype),
        "m c (h a p) (w b q) -> (m h w a b) (c t p q)",
        a=vision.spatial_merge_size,
        b=vision.spatial_merge_size,
        p=vision.patch_size,
        q=vision.patch_size,
        t=vision.temporal_patch_size,
    )
    rows, columns = (size // vision.patch_size for size in pixels.shape[-2:])
    grid = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)
    return bare(core.visual(patches, grid_thw=grid))


def encode(core: Any, pixels: Tensor) -> Tensor:
    """(m, 3, H, W) -> (m, 144, c)."""
    return run_tower(core, pixels)[0].unflatten(0, (len(pixels), -1))


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg between vision tokens of its own, of which the template has written the outer two."""
    return BETWEEN.join([base.image_token * side**2] * dynimgs)


def inputs(base: Any, mask: Mask, dynimgs: int, side: int) -> dict[str, Any]:
    """What M-RoPE is computed from: token types, and one grid of patches per DynImg."""
    patches = side * base.image_processor.merge_size
    grids = {"image_grid_thw": [[1, patches, patches]] * dynimgs} if dynimgs else {}
    return {"mm_token_type_ids": mask, **grids} if takes_token_types() else grids


PATCH = Patch(
    model_type="qwen2_vl",
    released=(12,),
    encode=encode,
    geometry=geometry,
    vision_tower="visual",
    rope="half, M-RoPE",
    placeholders=Placeholders("Qwen2VLProcessor", canvas=canvas, write=write, inputs=inputs),
)


def tiny_parts(kit: Any) -> dict[str, Any]:
    """Tokens, image processor and decoder that the Qwen-VL families share: patches of 4 px, merged 2 x 2."""
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor

    kit.name_tokens(
        "<|vision_start|>",
        "<|vision_end|>",
        processor=Qwen2VLProcessor,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )
    area = (SIDE * 2 * kit.PATCH_SIZE) ** 2
    sizes = {"patch_size": kit.PATCH_SIZE, "size": {"shortest_edge": area // 4, "longest_edge": 4 * area}}
    return {
        "image_processor": Qwen2VLImageProcessor(**sizes),
        "tokenizer": kit.tokenizer,
        "chat_template": kit.template("<|vision_start|><|image_pad|><|vision_end|>"),
    }


def tiny_config(kit: Any) -> dict[str, Any]:
    """Ids and rotary sections of the Qwen-VL families; 16 dimensions of a head are 8 frequencies, 2 + 3 + 3."""
    return {**rope_fields(rope_type="default", rope_theta=1e4, mrope_section=[2, 3, 3]), "head_dim": 16}


def tiny_ids(kit: Any) -> dict[str, Any]:
    """Ids of visual tokens, and of the one that older releases find pictures by."""
    start = kit.tokenizer.get_vocab()["<|vision_start|>"]
    return {**kit.image_ids(), **kit.video_ids(), "vision_start_token_id": start}


def tiny_tower(kit: Any, **extra: Any) -> dict[str, Any]:
    """A tower of two layers as the later families name its parts."""
    shape = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    return {**shape, "patch_size": kit.PATCH_SIZE, **extra}


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Qwen2-VL."""
    from transformers import Qwen2VLConfig, Qwen2VLProcessor, Qwen2VLVideoProcessor

    parts = tiny_parts(kit)
    processor = Qwen2VLProcessor(**parts, video_processor=Qwen2VLVideoProcessor(patch_size=kit.PATCH_SIZE))
    tower = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": kit.PATCH_SIZE}
    config = Qwen2VLConfig(
        vision_config=tower,
        text_config=kit.text("qwen2_vl_text", **tiny_config(kit)),
        **tiny_ids(kit),
    )
    return config, processor
