"""load(): a checkpoint, patched, with its processor and, when given, a trained adapter."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor
from transformers.utils import logging

from dynimg_plugin.compat import auto_class
from dynimg_plugin.config import CONFIG_NAME, DynImgConfig
from dynimg_plugin.hub import config_file, file_beside
from dynimg_plugin.ops import Implementation
from dynimg_plugin.original import convert_config, load_original, read_original
from dynimg_plugin.patching import apply_dynimg, dynimg_config, find_patch
from dynimg_plugin.processing import DynImgProcessor

THETA = ".theta_"
OURS = (THETA, ".slot_embedding")  # parameters that apply_dynimg() adds
logger = logging.get_logger(__name__)


def load(
    base: str | Path,
    adapter: str | Path | None = None,
    config: DynImgConfig | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    implementation: Implementation = "auto",
    lora_alpha: float | None = None,
) -> tuple[Any, DynImgProcessor]:
    """Load a checkpoint of a supported family, patch it, and load a peft adapter onto it.

    Args:
        base: hub id or folder, in transformers' format or in the `llava` package's own.
        adapter: folder (or hub id) of a peft adapter that was trained on a patched model; its theta is checked.
        config: by default the adapter's or the base folder's dynimg_config.json, else DynImgConfig().
        dtype: as in from_pretrained(), "auto" keeps the checkpoint's.
        device_map: as in from_pretrained().
        implementation: of 4D RoPE, as in apply_dynimg().
        lora_alpha: another strength of LoRA than in training (PLLaVA trains with 32 and answers with 4).

    Returns:
        (model in eval mode, processor).

    Raises:
        FileNotFoundError: `base` is a folder without a config.json or without a processor.
        ValueError: unknown family, or an adapter that does not fit the base.
    """
    tower = check_checkpoint(base)
    stored = stored_config(base, adapter, config).on_tower(**tower)
    config = stored if config is None else config.on_tower(**tower)
    if adapter is not None and not config.fits(stored):
        raise ValueError(f"the adapter was trained with {stored}, but {config} was asked for; leave config out")
    if adapter is None and lora_alpha is not None:
        raise ValueError(f"lora_alpha={lora_alpha} needs an adapter")
    model, base_processor, unexpected = _load_base(base, dtype=dtype, device_map=device_map)
    apply_dynimg(model.eval(), config, implementation=implementation)
    if stored_ours := list(filter(is_ours, unexpected)):
        if config_file(base) is None or not config.fits(stored_config(base).on_tower(**tower)):
            raise ValueError(
                f"{base} holds trained theta or slot embeddings: save the config they were trained with beside them "
                f"with DynImgConfig.save_pretrained(), and ask for no other than it; asked for was {config}"
            )
        _restore_ours(model, base, len(stored_ours))
    processor = DynImgProcessor(base_processor, config, patch=find_patch(model.config.model_type))
    return (model if adapter is None else load_adapter(model, adapter, lora_alpha=lora_alpha)), processor


@contextmanager
def without_report() -> Iterator[None]:
    """transformers reports weights of ours in a checkpoint as unexpected ones that can be ignored; they are not."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _report(base: str | Path, info: dict[str, Any]) -> None:
    for kind, names in info.items():
        if odd := [str(name) for name in names if not is_ours(str(name))]:
            logger.warning(f"{base}: {len(odd)} {kind.replace('_', ' ')}: {', '.join(sorted(odd)[:5])}")


def restore_weights(model: Any, folder: str | Path) -> None:
    """Copy into a patched model without adapter all weights of a checkpoint that save_pretrained() wrote of it.

    Not load_state_dict(): save_pretrained() renames weights to what older releases of transformers called them.
    """
    with without_report():
        stored = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    result = model.load_state_dict(stored, strict=False)
    if result.unexpected_keys or not all(map(is_ours, result.missing_keys)):
        raise ValueError(f"{folder} does not fit this model: {result}")
    _restore_ours(model, folder, len(result.missing_keys))


def _load_base(base: str | Path, **options: Any) -> tuple[Any, Any, list[str]]:
    """(model, its own processor, keys of the checkpoint that the model's class has no place for)"""
    if read_original(base) is not None:
        return *load_original(base, **options), []
    model_type = AutoConfig.from_pretrained(base).model_type
    with without_report():
        loaded: Any = auto_class(model_type).from_pretrained(base, **options, output_loading_info=True)
    _report(base, loaded[1])
    return loaded[0], AutoProcessor.from_pretrained(base), loaded[1]["unexpected_keys"]


def is_ours(name: str) -> bool:
    """Whether a parameter of this name is one that apply_dynimg() adds: theta or the slot embedding."""
    return any(word in name for word in OURS)


def _restore_ours(model: Any, base: str | Path, count: int) -> None:
    """Copy weights of ours from a checkpoint that a patched model wrote; the unpatched class had no place for them."""
    folder = Path(base) if Path(base).is_dir() else Path(snapshot_download(str(base), local_files_only=True))
    own = {name.rpartition(".")[2]: value for name, value in model.named_parameters() if is_ours(name)}
    restored = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in filter(is_ours, tensors.keys()):
                value, target = tensors.get_tensor(name), own[name.rpartition(".")[2]]
                if value.shape != target.shape:
                    raise ValueError(f"{name} of {base} has shape {tuple(value.shape)}, not {tuple(target.shape)}")
                target.data.copy_(value)
                restored += 1
    if restored != count:
        raise ValueError(f"{base} holds {count} tensors of ours but {restored} were found in its .safetensors files")


def stored_config(
    base: str | Path, adapter: str | Path | None = None, otherwise: DynImgConfig | None = None
) -> DynImgConfig:
    """The config that the adapter, else the base, carries; else `otherwise`, or DynImgConfig() for a base.

    Raises:
        FileNotFoundError: no such adapter, or one without dynimg_config.json and nothing given in its place.
    """
    if adapter is not None and Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{adapter} has no adapter_config.json; give the folder of a peft adapter")
    path = config_file(base if adapter is None else adapter)
    if path is not None:
        return DynImgConfig.from_pretrained(path.parent)
    if adapter is not None and otherwise is None:
        raise FileNotFoundError(
            f"{adapter} has no {CONFIG_NAME}; save it there with the training's processor.save_pretrained(...), or "
            "give the training's config: load(..., config=DynImgConfig(...))"
        )
    return otherwise or DynImgConfig()


def check_checkpoint(base: str | Path) -> dict[str, Any]:
    """What DynImgConfig.on_tower() asks of a checkpoint of a supported family, without loading weights.

    Raises:
        FileNotFoundError: no such checkpoint, or one without config or processor.
        ValueError: its family is not supported.
    """
    _check_folder(base)
    try:
        original = read_original(base)
        config = AutoConfig.from_pretrained(base) if original is None else convert_config(original)
    except OSError as error:
        raise FileNotFoundError(f"{base}: no such folder, and no such checkpoint could be had from the hub") from error
    if original is None:
        _check_processor(base)
    grid, patch_size = find_patch(config.model_type).tower(config)
    return {"grid": grid, "patch_size": patch_size, "newline": getattr(config, "mm_newline_position", None)}


def _check_folder(base: str | Path) -> None:
    folder = Path(base)
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) != 2:
            raise FileNotFoundError(f"{base} is neither a folder nor a hub id like 'owner/name'")
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{base} has no config.json; give the folder of a checkpoint")


def _check_processor(base: str | Path) -> None:
    folder = Path(base)
    if folder.is_dir() and not any(
        (folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")
    ):
        raise FileNotFoundError(
            f"{base} has no processor (processor_config.json or preprocessor_config.json); save the original "
            "checkpoint's AutoProcessor into it with .save_pretrained()"
        )


def load_adapter(model: Any, adapter: str | Path, *, lora_alpha: float | None = None) -> Any:
    """Put an adapter on a model that apply_dynimg() patched; the peft model is returned in eval mode.

    Use it instead of PeftModel.from_pretrained(), which drops theta and whatever else does not fit without a word.

    Raises:
        ValueError: the model is not patched, or with another config than the adapter's dynimg_config.json names; the
            adapter does not fit the model, or is pickled.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    config = dynimg_config(model)
    trained = stored_config("", adapter, config)
    if not (config.fits(trained) or config.fits(replace(trained, grid=config.grid, patch_size=config.patch_size))):
        raise ValueError(f"the adapter was trained with {trained}, but the model is patched with {config}")
    if file_beside(adapter, "adapter_model.safetensors") is None:
        raise ValueError(
            f"{adapter} has no adapter_model.safetensors; pickled adapters (.bin) are not opened, see `dynimg convert`"
        )
    stored = {plain_name(name) for name in load_peft_weights(str(adapter), device="cpu")}
    check_ours(adapter, stored, config)
    peft_config: Any = PeftConfig.from_pretrained(str(adapter))
    if lora_alpha is not None:
        peft_config.lora_alpha = lora_alpha
    try:
        loaded = PeftModel.from_pretrained(model, adapter, config=peft_config)
    except (KeyError, RuntimeError) as error:  # missing parts, or shapes of another base
        raise ValueError(f"adapter {adapter} does not fit this base: {error}") from error
    taken = {plain_name(name) for name in get_peft_model_state_dict(loaded, save_embedding_layers=False)}
    if stored != taken:
        odd = [f"{name} {'has no place' if name in stored else 'is missing'}" for name in sorted(stored ^ taken)[:5]]
        raise ValueError(f"adapter {adapter} does not fit this base: {', '.join(odd)}")
    return loaded.eval()


def check_ours(adapter: str | Path, stored: Collection[str], config: DynImgConfig) -> None:
    """Raise a ValueError for an adapter without theta, or slot embedding, where the config has it."""
    if config.rope_4d and not any(THETA in name for name in stored):
        raise ValueError(
            f"adapter {adapter} holds no theta_t, theta_h, theta_w; train with "
            "LoraConfig(modules_to_save=['rotary_emb', ...]), or with DynImgConfig(rope_4d=False)"
        )
    if config.fusion == "tokens" and not any("slot_embedding" in name for name in stored):
        raise ValueError(
            f"adapter {adapter} holds no slot_embedding, which fusion='tokens' has; train with "
            "LoraConfig(modules_to_save=['prompt_slots', ...])"
        )


def plain_name(name: str) -> str:
    """A tensor's name without what peft puts between."""
    return name.replace(".modules_to_save.default", "").replace(".default", "")


def with_fresh_adapter(model: Any, adapter: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what an adapter of this kind holds on `model` (patched, maybe without weights).

    Raises:
        ValueError: its adapter_config.json names parts that the model lacks.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    settings = PeftConfig.from_pretrained(str(adapter))
    try:
        wrapped = get_peft_model(model, settings)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"adapter {adapter} does not fit this base: {error}") from error
    state = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
