"""The language model of an assembled checkpoint, and its tokenizer and chat template with room for pictures."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dynimg_plugin.assembling.towers import check_whole, read_config
from dynimg_plugin.loading import without_report

# Their logits are the head's on the last state alone, as LLaVA's class computes them: no soft cap, no multiplier.
LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
VISUALS = ("<image>", "<video>")
# Before the language model's own template: the items of each message as one text, a picture or video as its token.
AS_TEXT = (
    "{% set plain = namespace(messages=[]) %}{% for message in messages %}"
    "{% if message['content'] is string or message['content'] is none or message['content'] is undefined %}"
    "{% set plain.messages = plain.messages + [message] %}{% else %}{% set content = namespace(text='') %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}"
    "{% set content.text = content.text + item['text'] %}{% else %}"
    "{% set content.text = content.text + '<' + item['type'] + '>\\n' %}{% endif %}{% endfor %}"
    "{% set plain.messages = plain.messages + [dict(message, content=content.text)] %}{% endif %}{% endfor %}"
    "{% set messages = plain.messages %}"
)


def read_language(name: str) -> Any:
    """The config of a language model.

    Raises:
        ValueError: it is none of LANGUAGE_MODELS. FileNotFoundError: its config cannot be had.
    """
    config = read_config(name)
    if config.model_type not in LANGUAGE_MODELS:
        raise ValueError(
            f"language model {name} is a {config.model_type}, which LLaVA's class would not run as its own does; "
            f"allowed: {', '.join(LANGUAGE_MODELS)}"
        )
    return config


def load_language(name: str, dtype: str | torch.dtype) -> Any:
    """The language model with its head; ValueError when weights are missing."""
    with without_report():
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
    check_whole(name, loaded[1])
    return loaded[0]


def load_tokenizer(name: str) -> Any:
    """The tokenizer with the tokens <image> and <video>, padding on the left, and its own chat template after AS_TEXT.

    Raises:
        ValueError: it has no chat template.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(name, padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of {name} has no chat template; give the instruct version, or save the tokenizer with a "
            "chat_template into the model's folder"
        )
    tokenizer.chat_template = AS_TEXT + tokenizer.get_chat_template()
    tokenizer.add_tokens([token for token in VISUALS if token not in tokenizer.get_vocab()], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer
