"""Are weights whole, and does an adapter fit a base? Told from the heads of their files: no weight is read."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from dynimg_plugin.compat import auto_class
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.loading import check_ours, plain_name, with_fresh_adapter
from dynimg_plugin.patching import apply_dynimg

WEIGHTS, INDEX = "adapter_model.safetensors", "model.safetensors.index.json"


def weight_bytes(base: str | Path) -> int:
    """Bytes of a folder's weight files, after a look at the head of each; 0 for a hub id.

    Raises:
        FileNotFoundError: no weights, or not all the files that their index names.
        ValueError: a file that is cut short or no .safetensors file.
    """
    folder = Path(base)
    if not folder.is_dir():
        return 0
    index = folder / INDEX
    named = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    files = [folder / name for name in sorted(named)] or [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if lost := [str(file) for file in files if not file.is_file()] or ([] if files else [f"{folder}/*.safetensors"]):
        raise FileNotFoundError(f"{lost[0]} is missing; download the checkpoint again")
    for file in filter(lambda file: file.suffix == ".safetensors", files):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read ({error}); download it again") from error
    return sum(file.stat().st_size for file in files)


def check_adapter(base: str | Path, adapter: str | Path, config: DynImgConfig) -> str:
    """What an adapter holds, in words.

    Raises:
        FileNotFoundError: a folder without an adapter.
        ValueError: it does not fit the base; names and shapes are compared on a model without weights.
    """
    if not Path(adapter).is_dir():
        return f"{adapter} is no folder here; it is looked at when it is loaded from the hub"
    path = Path(adapter) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the folder of a peft adapter in safetensors format")
    with safe_open(path, "pt") as tensors:
        stored = {plain_name(name): tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    check_ours(adapter, stored, config)
    base_config = AutoConfig.from_pretrained(base)
    with init_empty_weights():  # parameters without memory; buffers are real, 4D RoPE looks at the rotary ones
        model = auto_class(base_config.model_type).from_config(base_config)
    fresh = with_fresh_adapter(apply_dynimg(model, config), adapter)
    wanted = {plain_name(name): shape for name, shape in fresh.items()}
    odd = [f"{name} has no place" for name in sorted(stored.keys() - wanted.keys())]
    odd += [f"{name} is missing" for name in sorted(wanted.keys() - stored.keys())]
    odd += [
        f"{name} has shape {shape}, the base wants {wanted[name]}"
        for name, shape in sorted(stored.items())
        if name in wanted and wanted[name] != shape
    ]
    if odd:
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ValueError(f"adapter {adapter} does not fit {base}: {'; '.join(odd[:3])}{more}")
    return f"{adapter}, {len(stored)} tensors, all fit"
