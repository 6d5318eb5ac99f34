"""The untrained model: a SigLIP tower of 16 x 16 patches, a Qwen2 of three layers, a tokenizer that knows motion_qa."""

from __future__ import annotations

import re
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedTokenizerFast

from dynimg_plugin import DynImgConfig, tiny
from dynimg_plugin.eval_tasks.motion_qa.dataset import rows
from dynimg_plugin.eval_tasks.motion_qa.questions import COUNTS, open_prompt
from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, DIRECTIONS, SHAPES
from dynimg_plugin.families import family_module

ANSWER = "<|answer|>"
ONE_WORD = "\nAnswer with a single word."
SIMPLE = {  # questions beside motion_qa's own; each names a colour
    "shape": f"What shape is the {{}} object?{ONE_WORD}",
    "presence": f"Is there a {{}} object?{ONE_WORD}",
    "direction": f"In which direction does the {{}} object move?{ONE_WORD}",
    "motion": f"Does the {{}} object move?{ONE_WORD}",
}
# DynImgs of 128 x 128 pixels: key 12 x 16 patches -> 6 x 8 cells, each of four prompts 4 x 4 patches -> 2 x 2 cells.
DYNIMG = DynImgConfig(pooled_size=8)
ARMS = {
    "key_frames": DYNIMG.with_options({"fusion": "none", "rope_4d": False}),
    "dynimg": DYNIMG.with_options({"rope_4d": False}),
    "dynimg_4d_rope": DYNIMG,
}


class Kit(tiny.Kit):
    """The parts of one LLaVA-OneVision, for the family's own tiny() to put together."""

    PATCH_SIZE = 8
    SIGLIP_SIZE = 16 * PATCH_SIZE
    CHAT_TEMPLATE = (  # short, for every token costs training time
        "{% for message in messages %}{{ '<|im_start|>' if message['role'] == 'user' else '<|answer|>' }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
        "{% if item['type'] == 'image' %}<image>{% elif item['type'] == 'video' %}<video>"
        "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|answer|>{% endif %}"
    )

    def __init__(self) -> None:
        self.tokenizer = phrase_tokenizer()

    def text(self, model_type: str) -> dict[str, Any]:
        shape = {"intermediate_size": 128, "num_hidden_layers": 3, "num_key_value_heads": 4}
        start = {"initializer_range": 0.125, "tie_word_embeddings": True, "max_position_embeddings": 2048}
        return {**super().text(model_type), **shape, **start}

    def siglip_tower(self, side: int = SIGLIP_SIZE) -> dict[str, Any]:
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
        return {**super().siglip_tower(side), **shape}

    def siglip_sizes(self, side: int = SIGLIP_SIZE) -> dict[str, Any]:
        return super().siglip_sizes(side)


def words() -> list[str]:
    """What answers and questions vary in; each is one token. A shape follows a colour or stands alone."""
    return [*COLOURS, *SHAPES, *(f" {shape}" for shape in SHAPES), *COUNTS, "yes", "no", *DIRECTIONS]


def phrases() -> list[str]:
    """The fixed parts of motion_qa's open questions: "Does a ", " light up for a moment, yes or no? ..."."""
    named = re.compile("|".join((*COLOURS, *SHAPES)))
    asked = {(row["category"], open_prompt(row)) for row in rows("train", 200)}
    varied = ("direction_fast", "count", "existence")  # these name an object, the others are the same for every clip
    own = {part for kind, text in asked for part in (named.split(text) if kind in varied else [text])} - {" "}
    return sorted(own | {part for text in SIMPLE.values() for part in text.split("{}")})


def phrase_tokenizer() -> PreTrainedTokenizerFast:
    """All 256 bytes, so that any text survives a round trip, and each phrase and word of motion_qa as one token."""
    special = [*tiny.SPECIAL, ANSWER]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={text: i for i, text in enumerate(special + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in [*phrases(), *words()] if text])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>", ANSWER],
        padding_side="left",
        model_max_length=2048,
    )
    fast.image_token, fast.video_token = "<image>", "<video>"
    return fast


def build_base(seed: int) -> tuple[Any, Any]:
    """(model, processor) with random weights; the same seed gives the same weights."""
    kit = Kit()
    config, processor = family_module("llava_onevision").tiny(kit)
    config.tie_word_embeddings = True
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config)
    _widen(model)
    match_at_first(model)
    end, pad = kit.tokenizer.eos_token_id, kit.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=False)
    return model, processor


def _widen(model: Any) -> None:
    """Tower and projector start at about 1 / sqrt(width): from 0.02 so narrow a tower learns no shapes."""
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        for name, weight in part.named_parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, 0.0, 0.1 if "patch_embedding" in name else 0.125)


def match_at_first(model: Any) -> None:
    """Keys start as copies of queries: attention begins by looking up what is alike, a word and what shows it.

    From independent keys, no question that names an object was learned within 1000 steps.
    """
    for layer in model.model.language_model.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight)
