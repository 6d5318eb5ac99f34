"""The processor that goes with a checkpoint in the `llava` package's format, which has none of its own."""

from __future__ import annotations

from typing import Any

import transformers

VISUAL = "{% if item['type'] == 'text' %}{{ item['text'] }}{% else %}<{{ item['type'] }}>\n{% endif %}"
CONTENT = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}" + VISUAL + "{% endfor %}{% endif %}"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
# The package's conversations vicuna_v1, qwen_1_5 and mistral_instruct:
TEMPLATES = {
    "llama": VICUNA
    + "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    + CONTENT
    + " {% else %}ASSISTANT: "
    + CONTENT
    + "</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "qwen2": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    + CONTENT
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "mistral": "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    + CONTENT
    + " [/INST]{% else %}"
    + CONTENT
    + "</s>{% endif %}{% endfor %}",
}


def build_processor(original: dict[str, Any], config: Any, tokenizer: Any) -> Any:
    """The family's processor with the image size of its tower and the package's conversation as chat template."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    template = TEMPLATES[config.text_config.model_type]
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    if config.model_type == "llava_onevision":
        size: dict[str, Any] = {"size": {"height": side, "width": side}}
        return transformers.LlavaOnevisionProcessor(
            image_processor=transformers.LlavaOnevisionImageProcessor(
                **size, image_grid_pinpoints=config.image_grid_pinpoints
            ),
            tokenizer=tokenizer,
            video_processor=transformers.LlavaOnevisionVideoProcessor(**size),
            num_image_tokens=(side // patch) ** 2,
            vision_feature_select_strategy="full",
            vision_aspect_ratio=config.vision_aspect_ratio,
            chat_template=template,
        )
    crop: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    common = {
        "tokenizer": tokenizer,
        "patch_size": patch,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": 1,
        "chat_template": template,
    }
    if config.model_type == "llava":
        return transformers.LlavaProcessor(transformers.CLIPImageProcessor(**crop), **common)
    images = transformers.LlavaNextImageProcessor(**crop, image_grid_pinpoints=config.image_grid_pinpoints)
    if config.model_type == "llava_next":
        return transformers.LlavaNextProcessor(images, **common)
    videos = transformers.LlavaNextVideoVideoProcessor(**crop)
    return transformers.LlavaNextVideoProcessor(video_processor=videos, image_processor=images, **common)
