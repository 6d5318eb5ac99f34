"""Where transformers' releases differ, 4.57 to 5: known here alone. What a release can do is asked, not its number."""

from __future__ import annotations

import inspect
from dataclasses import fields
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

NEWER_ARGUMENTS = {  # of TrainingArguments, and what they were called
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
BESIDE_ROPE = ("rope_theta", "partial_rotary_factor")  # fields of their own before there were rope_parameters


def reads_newest_checkpoints() -> bool:
    """transformers 4 knows neither the tokenizer class nor the names of weights that 5 writes."""
    return hasattr(transformers, "TokenizersBackend")


def takes_outputs(core_class: type) -> bool:
    """Whether the class takes outputs with a `pooler_output` from its feature methods; older ones take it bare."""
    forward: Any = inspect.unwrap(getattr(core_class, "forward"))  # noqa: B009 (mypy: not every class has one)
    code = forward.__code__
    return "pooler_output" in code.co_names or "mm_encoder_outputs" in code.co_varnames


def image_features(core: Any, pixels: Any, **options: Any) -> Any:
    """What the class's own get_image_features() finds in `pixels`: a tensor, or one per picture."""
    if takes_outputs(type(core)):
        options["return_dict"] = True
    return bare(type(core).get_image_features(core, pixels, **options))[0]


def bare(output: Any) -> tuple[Any, Any]:
    """(features, features of deeper layers or None) of an output, of a pair of them, or of bare features."""
    if hasattr(output, "pooler_output"):
        return output.pooler_output, getattr(output, "deepstack_features", None)
    pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], list)  # Qwen3-VL
    return output if pair else (output, None)


def returned(core_class: type, output: Any) -> Any:
    """`output`, with a pooler_output, in the form in which the class takes it from its feature method."""
    if takes_outputs(core_class):
        return output
    features, deeper = bare(output)
    return features if deeper is None else (features, [torch.cat(tuple(layer)) for layer in deeper])


@cache
def pixel_input(model_type: str) -> str:
    """The name of the pictures among a family's inputs: in older releases Video-LLaVA has one of its own."""
    usual = "pixel_values"
    if model_type != "video_llava" or usual in inspect.signature(transformers.VideoLlavaModel.forward).parameters:
        return usual
    return "pixel_values_images"


@cache
def takes_token_types() -> bool:
    """Whether families with M-RoPE compute positions from mm_token_type_ids; older ones read the tokens themselves."""
    return "mm_token_type_ids" in inspect.signature(transformers.Qwen2VLModel.get_rope_index).parameters


def expands_by_patches(model_class: type, core_class: type) -> bool:
    """Whether generate() counts patches where beams repeat rows: older Qwen-VL and GLM do. DynImgs come by rows."""
    return "_expand_inputs_for_generation" in vars(model_class) and not takes_outputs(core_class)


def auto_class(model_type: str) -> Any:
    """AutoModelForImageTextToText, told of the family that older releases list only under Vision2Seq."""
    if model_type == "video_llava" and model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        config, model = transformers.VideoLlavaConfig, transformers.VideoLlavaForConditionalGeneration
        AutoModelForImageTextToText.register(config, model, exist_ok=True)
    return AutoModelForImageTextToText


def rope_fields(**parameters: Any) -> dict[str, Any]:
    """Fields of a text config for these rope_parameters: older configs have rope_theta and rope_scaling."""
    if hasattr(transformers.LlamaConfig(), "rope_parameters"):
        return {"rope_parameters": parameters}
    beside = {name: parameters.pop(name) for name in BESIDE_ROPE if name in parameters}
    return beside if parameters == {"rope_type": "default"} else {**beside, "rope_scaling": parameters}


def rope_parameters(text_config: Any) -> dict[str, Any]:
    """The rope_parameters of a text config, whatever its fields are called."""
    beside = {name: getattr(text_config, name) for name in BESIDE_ROPE if hasattr(text_config, name)}
    named = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None)
    return {**beside, **(named or {"rope_type": "default"})}


def further_rotaries(decoder: Any, main: str) -> list[str]:
    """Names of rotary embeddings beside the `main` one: older Gemma 3 has one apart for sliding layers."""
    return [name for name, _ in decoder.named_children() if name.startswith(f"{main}_")]


def tower_prefix(vision_config: Any) -> str:
    """What stands before the names of a CLIP or SigLIP tower's weights: older ones keep them one module deeper."""
    with torch.device("meta"):
        tower = AutoModel.from_config(vision_config)
    return "vision_model." if hasattr(tower, "vision_model") else ""


def training_options(arguments_class: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options for TrainingArguments, named as the newest release does, in the words of this one."""
    types = {field.name: field.type for field in fields(arguments_class)}
    named = {name if name in types else NEWER_ARGUMENTS.get(name, name): value for name, value in options.items()}
    if "activation_checkpointing" not in types and named.get("gradient_checkpointing"):
        reentrant = named.get("gradient_checkpointing_kwargs") or {}  # by default True there: theta could not train
        named["gradient_checkpointing_kwargs"] = {"use_reentrant": False, **reentrant}
    if types["warmup_steps"] in (int, "int") and 0 < (named.get("warmup_steps") or 0) < 1:  # a share of all steps
        named["warmup_ratio"] = named.pop("warmup_steps")
    return named


def image_processor_class(name: str) -> Any:
    """An image processor that older releases have with the ending Fast alone."""
    return getattr(transformers, name, None) or getattr(transformers, f"{name}Fast")


def tokenizer_for(processor_class: Any, **options: Any) -> Any:
    """A fast tokenizer of the class that the processor takes: older ones insist on the one that they name."""
    names = getattr(processor_class, "tokenizer_class", None)
    if not isinstance(names, tuple):
        return transformers.PreTrainedTokenizerFast(**options)
    return getattr(transformers, names[-1])(**options, unk_token=None, bos_token=None, add_bos_token=False)
