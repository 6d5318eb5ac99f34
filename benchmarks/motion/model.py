"""The study's LLaVA-OneVision: a SigLIP tower and a Qwen2 decoder, two layers of 64 each."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from dynimg_plugin import DynImgConfig, apply_dynimg

from .questions import ANSWERS, QUESTIONS

WIDTH, HEADS = 64, 4
FIRST_ANSWER = {q: len(QUESTIONS) + sum(list(ANSWERS.values())[:i]) for i, q in enumerate(QUESTIONS)}
VOCABULARY = 64  # 8 questions, 34 answers, placeholders
SHAPE = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": HEADS}


def build(config: DynImgConfig, seed: int, device: str = "cpu") -> Any:
    """A random model for the config's patch grid, patched.

    Attention in PyTorch's plain operations: at this size twice as fast on a CPU.
    """
    whole = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": config.grid * config.patch_size,
            "patch_size": config.patch_size,
            "vision_use_head": False,
            **SHAPE,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 512,
            "initializer_range": 0.1,  # 0.02 is for widths of thousands
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "tie_word_embeddings": False,
            **SHAPE,
        },
        image_token_id=VOCABULARY - 1,
        video_token_id=VOCABULARY - 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaOnevisionForConditionalGeneration(whole)
        _start(model)
    return apply_dynimg(model, config, implementation="reference").to(device)


@torch.no_grad()
def _start(model: Any) -> None:
    """Question tokens as large as visual ones; the projector as an ordinary pair of linear layers."""
    model.model.language_model.embed_tokens.weight.normal_()
    projector = model.model.multi_modal_projector
    projector.linear_1.reset_parameters()
    projector.linear_2.reset_parameters()


@torch.no_grad()
def scale_projector(model: Any, tokens: torch.Tensor) -> None:
    """Visual tokens enter the language model with mean 0 and deviation 1, as its question tokens do."""
    projector = model.model.multi_modal_projector
    found = projector(tokens)
    middle = found.mean((0, 1))
    deviation = (found - middle).std()
    projector.linear_2.weight /= deviation
    projector.linear_2.bias.copy_((projector.linear_2.bias - middle) / deviation)
