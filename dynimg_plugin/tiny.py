"""Complete random checkpoints of a few hundred kilobytes, one per family, made offline in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from dynimg_plugin.compat import auto_class, tokenizer_for
from dynimg_plugin.families import built_in_families, family_module

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "What is shown in this video? Answer with the option's letter. Answer with a single word or phrase. Options:",
    "(A) left (B) right (C) up (D) down Yes No red green blue yellow circle square triangle one two three four",
]


class Kit:
    """Small parts that the families' tiny() builders put together; every tower has a grid that DynImgs are made for."""

    PATCH_SIZE = 4
    CLIP_SIZE = 24 * PATCH_SIZE
    SIGLIP_SIZE = 27 * PATCH_SIZE + 2  # like 384 = 27 * 14 + 6: the tower never sees the last pixels
    CHAT_TEMPLATE = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
        "{% if item['type'] == 'image' %}<image>\n{% elif item['type'] == 'video' %}<video>\n"
        "{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def __init__(self) -> None:
        self.name_tokens(image_token="<image>", video_token="<video>")

    def name_tokens(self, *others: str, processor: Any = None, **named: str) -> None:
        """Give the tokenizer a family's special tokens: named ones, image_token="<image>", are attributes of it too.

        The class of the processor is asked which tokenizers it takes.
        """
        self.tokenizer = byte_tokenizer(others, named, processor)

    def template(self, image: str) -> str:
        """The chat template with `image` in the place of an image item."""
        return self.CHAT_TEMPLATE.replace("<image>", image)

    def text(self, model_type: str, **extra: Any) -> dict[str, Any]:
        """A decoder of two layers; the vocabulary is rounded up to a multiple of 8."""
        return {
            "model_type": model_type,
            "vocab_size": -(-len(self.tokenizer) // 8) * 8,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
            "bos_token_id": None,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
            "tie_word_embeddings": False,
            **extra,
        }

    def _tower(self, model_type: str, size: int, **extra: Any) -> dict[str, Any]:
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        return {"model_type": model_type, "image_size": size, "patch_size": self.PATCH_SIZE, **shape, **extra}

    def clip_tower(self, side: int = CLIP_SIZE) -> dict[str, Any]:
        return self._tower("clip_vision_model", side, projection_dim=32)

    def siglip_tower(self, side: int = SIGLIP_SIZE) -> dict[str, Any]:
        return self._tower("siglip_vision_model", side, vision_use_head=False)

    def clip_sizes(self, side: int = CLIP_SIZE) -> dict[str, Any]:
        return {"size": {"shortest_edge": side}, "crop_size": self.square(side)}

    def siglip_sizes(self, side: int = SIGLIP_SIZE) -> dict[str, Any]:
        return {"size": self.square(side)}

    @staticmethod
    def square(side: int) -> dict[str, int]:
        return {"height": side, "width": side}

    def clip_images(self) -> Any:
        from transformers import CLIPImageProcessor

        return CLIPImageProcessor(**self.clip_sizes())

    @staticmethod
    def pinpoints(side: int) -> list[list[int]]:
        return [[side, side], [side, 2 * side], [2 * side, side]]

    def patch_and_template(self) -> dict[str, Any]:
        """What the processors of the CLIP families need beside their parts."""
        return {
            "patch_size": self.PATCH_SIZE,
            "vision_feature_select_strategy": "default",
            "chat_template": self.CHAT_TEMPLATE,
        }

    def image_ids(self) -> dict[str, Any]:
        return {"image_token_id": self.token_id("image_token"), "tie_word_embeddings": False}

    def video_ids(self) -> dict[str, Any]:
        return {"video_token_id": self.token_id("video_token")}

    def token_id(self, name: str) -> int:
        """Id of a token by its name, e.g. "image_token"."""
        return self.tokenizer.get_vocab()[getattr(self.tokenizer, name)]


def byte_tokenizer(others: Sequence[str], named: dict[str, str], processor: Any = None) -> PreTrainedTokenizerFast:
    """All 256 bytes, a few merges and the special tokens: any text survives a round trip."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*SPECIAL, *named.values(), *others]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=special
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer_for(
        processor,
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=named,
        padding_side="left",
        model_max_length=8192,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_tiny(family: str, *, seed: int = 0) -> tuple[Any, Any]:
    """A random tiny (model in eval mode, processor) of `family`; the same seed gives the same weights.

    Raises:
        ValueError: for a family that is not built in.
    """
    if family not in built_in_families():
        raise ValueError(f"no tiny checkpoint for {family!r}; families: {', '.join(built_in_families())}")
    kit = Kit()
    return build_from(kit, *family_module(family).tiny(kit), seed=seed)


def build_from(kit: Kit, config: Any, processor: Any, *, seed: int = 0) -> tuple[Any, Any]:
    """(random model of `config` in eval mode, processor), from the parts of `kit`."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = auto_class(config.model_type).from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # Gemma 3's projection: no picture would reach the text
            torch.nn.init.normal_(parameter, std=0.02)
    torch.random.set_rng_state(state)
    end, pad = kit.tokenizer.eos_token_id, kit.tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, do_sample=False)
    return model, processor


def write_tiny(family: str, folder: str | Path, *, seed: int = 0) -> Path:
    """Write build_tiny()'s checkpoint into `folder`; AutoModelForImageTextToText and AutoProcessor load it."""
    model, processor = build_tiny(family, seed=seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
