"""Tiny parts to assemble: one SigLIP as transformers and as timm write it, same weights, and a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from transformers import AutoModelForCausalLM, Qwen2Config, SiglipConfig, SiglipImageProcessor, SiglipModel

from dynimg_plugin.tiny import Kit, byte_tokenizer

DEPTH, WIDE, HEADS = 3, 32, 2
# ChatML with a system prompt of its own, as Qwen2.5's; like it, it takes a message's content for a text.
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{% else %}{{ '<|im_start|>system\\nYou are Tiny.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NORMALISATION: dict[str, Any] = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}


def write_siglip(folder: Path) -> SiglipModel:
    """A whole SigLIP, text half and pooling head included, with its image processor."""
    torch.manual_seed(1)
    side = Kit.SIGLIP_SIZE
    shape = {"hidden_size": WIDE, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    config = SiglipConfig(
        text_config={**shape, "vocab_size": 50, "max_position_embeddings": 8, "projection_size": WIDE},
        vision_config={**shape, "image_size": side, "patch_size": Kit.PATCH_SIZE},
    )
    model = SiglipModel(config).eval()
    for parameter in model.parameters():  # norms and biases too, so that none can be mistaken for another
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    SiglipImageProcessor(size=Kit.square(side), **NORMALISATION).save_pretrained(folder)
    return model


def write_timm(folder: Path, siglip: SiglipModel, activation: str = "gelu_tanh") -> Any:
    """The same tower as a checkpoint of timm's."""
    shape = {"img_size": Kit.SIGLIP_SIZE, "patch_size": Kit.PATCH_SIZE, "embed_dim": WIDE, "mlp_ratio": 1.5}
    arguments = {**shape, "depth": DEPTH, "num_heads": HEADS, "act_layer": activation}
    model = timm.create_model("vit_so400m_patch14_siglip_384", num_classes=0, **arguments)
    model.load_state_dict(as_timm(siglip.vision_model.state_dict()), strict=False)
    mean, std = NORMALISATION.values()
    model.pretrained_cfg |= {"mean": tuple(mean), "std": tuple(std)}
    save_for_hf(model, str(folder), model_args=arguments, safe_serialization=True)
    return model


def as_timm(tower: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' names of a SigLIP tower's weights to timm's, without the pooling head; q, k, v in one."""
    names = {
        "encoder.layers": "blocks",
        "layer_norm": "norm",
        "self_attn.out_proj": "attn.proj",
        "embeddings.patch_embedding": "patch_embed.proj",
        "post_layernorm": "norm",
    }
    found: dict[str, torch.Tensor] = {"pos_embed": tower["embeddings.position_embedding.weight"][None]}
    for name, value in tower.items():
        if "head" in name or "position_embedding" in name or "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            value = torch.cat([tower[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for old, new in {**names, "self_attn.q_proj": "attn.qkv"}.items():
            name = name.replace(old, new)
        found[name] = value
    return found


def write_language(folder: Path, **changes: Any) -> Any:
    """A tiny Qwen2 whose head can speak, with a tokenizer that has a chat template and no picture token."""
    torch.manual_seed(2)
    tokenizer = byte_tokenizer([], {})
    tokenizer.chat_template = TEMPLATE
    text = {**Kit().text("qwen2"), "vocab_size": len(tokenizer), "dtype": "bfloat16", **changes}
    model: Any = AutoModelForCausalLM.from_config(Qwen2Config(**text))
    if not text["tie_word_embeddings"]:
        model.lm_head.weight.data *= 10
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_config(folder: Path, **values: Any) -> Path:
    """A folder with a config.json and nothing else."""
    import json

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values), "utf-8")
    return folder
