"""PerceptionLM: timm's Perception Encoder, 32 x 32 patches averaged to 16 x 16 tokens, which are pooled; no tiling."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dynimg_plugin.compat import image_processor_class
from dynimg_plugin.families import Patch, encode_natively
from dynimg_plugin.placeholders import Placeholders


def geometry(config: Any) -> tuple[int, int]:
    """Tokens per side and pixels of a token's side: 448 px, 32 patches, 2 x 2 to a token -> (16, 28)."""
    tower = config.vision_config.model_args
    side = tower["ref_feat_shape"][0] // config.projector_pooling_ratio
    return side, tower["img_size"][0] // side


def canvas(base: Any) -> tuple[int, int]:
    """As geometry(), from the processor: (448, 16)."""
    tile = base.image_processor.tile_size
    return tile, tile // base.patch_size // base.pooling_ratio


def encode(core: Any, pixels: Tensor) -> Tensor:
    """As the class does with one tile: (m, 3, H, W) -> (m, tokens, c)."""
    return encode_natively(core, pixels.unsqueeze(1))


PATCH = Patch(
    model_type="perception_lm",
    released=(16,),
    encode=encode,
    geometry=geometry,
    stacked=True,
    dims=6,
    placeholders=Placeholders("PerceptionLMProcessor", canvas=canvas),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny PerceptionLM: a tower of 32 x 32 patches from timm, Llama."""
    from transformers import PerceptionLMConfig, PerceptionLMProcessor, PerceptionLMVideoProcessor

    kit.name_tokens(image_token="<|image|>", video_token="<|video|>")
    side = 32 * kit.PATCH_SIZE
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size=kit.square(side)),
        image_processor_class("PerceptionLMImageProcessor")(
            tile_size=side, size=kit.square(side), vision_input_type="vanilla"
        ),
        kit.tokenizer,
        patch_size=kit.PATCH_SIZE,
        pooling_ratio=2,
        chat_template=kit.template("<|image|>"),
    )
    tower = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_tiny_patch16_384",
        "do_pooling": False,
        "num_classes": 0,
        "model_args": {
            "img_size": [side, side],
            "patch_size": kit.PATCH_SIZE,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "global_pool": "",
            "use_post_transformer_norm": False,
            "init_values": 0.1,
            "ref_feat_shape": [32, 32],
        },
        "initializer_range": 0.02,
    }
    config = PerceptionLMConfig(
        vision_config=tower,
        text_config=kit.text("llama"),
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        **kit.image_ids(),
        **kit.video_ids(),
    )
    return config, processor
