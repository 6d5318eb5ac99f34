"""Vision towers of timm and transformers, cut at the layer that is read: described first, loaded later."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from PIL.Image import Resampling
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, TimmWrapperConfig

from dynimg_plugin.hub import file_beside
from dynimg_plugin.loading import without_report
from dynimg_plugin.original import TOWERS

Strategy = Literal["full", "default"]
FORMS = (
    "timm:NAME (timm:vit_so400m_patch14_siglip_384), timm:local-dir:FOLDER, timm:hf-hub:OWNER/NAME, or "
    "hf:ID_OR_FOLDER (hf:google/siglip-so400m-patch14-384)"
)
STRATEGIES: dict[str, Strategy] = {"siglip_vision_model": "full", "clip_vision_model": "default"}


class Tower(ABC):
    """One vision tower.

    Attributes:
        source: as it was named.
        config: transformers' config of the tower up to the layer that is read, which is then its last.
        layers: how many are kept, of how many.
        strategy: vision_feature_select_strategy; "default" drops a CLS token, "full" keeps all tokens.
    """

    def __init__(self, source: str, config: Any, layers: tuple[int, int], strategy: Strategy) -> None:
        self.source, self.config, self.layers, self.strategy = source, config, layers, strategy

    @abstractmethod
    def load(self, dtype: torch.dtype) -> nn.Module:
        """The tower with its weights. ValueError when some are missing, OSError when none can be had."""

    @abstractmethod
    def normalisation(self) -> dict[str, Any]:
        """image_mean, image_std and resample of the pictures that the tower was trained on."""


def read_tower(source: str, layer: int = -2) -> Tower:
    """Describe a tower without its weights.

    Args:
        source: "timm:..." as for timm.create_model(), or "hf:..." with a hub id or folder of a SigLIP or CLIP.
        layer: the layer whose output is read, counted from the end. -2 is LLaVA's and PLLaVA's; the paper names none.

    Raises:
        ValueError: another prefix, a tower that is no plain square ViT, or that has no such layer.
        FileNotFoundError: its config cannot be had.
    """
    kind, _, name = source.partition(":")
    if kind not in ("timm", "hf") or not name:
        raise ValueError(f"vision tower {source!r} is not known; allowed: {FORMS}")
    return (TimmTower if kind == "timm" else HfTower)(source, name, layer)


class HfTower(Tower):
    """SigLIP or CLIP of transformers, from a checkpoint of the tower alone or of the whole model."""

    def __init__(self, source: str, name: str, layer: int) -> None:
        whole = AutoConfig.for_model(**TOWERS[name]) if name in TOWERS else read_config(name)
        config = getattr(whole, "vision_config", whole)
        if config.model_type not in STRATEGIES:
            raise ValueError(
                f"{source} is a {whole.model_type}, which LLaVA's classes do not take as a tower; allowed: a SigLIP or "
                "CLIP with hf:, any plain ViT of timm with timm:"
            )
        depth = config.num_hidden_layers
        kept = config.num_hidden_layers = kept_layers(source, depth, layer)
        if hasattr(config, "vision_use_head"):
            config.vision_use_head = False
        super().__init__(source, config, (kept, depth), STRATEGIES[config.model_type])
        self.name = name

    def load(self, dtype: torch.dtype) -> nn.Module:
        with without_report():  # the layers above, the head and the text half are left out on purpose
            loaded: Any = AutoModel.from_pretrained(
                self.name, config=self.config, dtype=dtype, output_loading_info=True
            )
        check_whole(self.source, loaded[1])
        return loaded[0]

    def normalisation(self) -> dict[str, Any]:
        images: Any = AutoImageProcessor.from_pretrained(self.name)
        return {name: getattr(images, name) for name in ("image_mean", "image_std", "resample")}


class TimmTower(Tower):
    """A plain ViT of timm inside transformers' wrapper, which gives patches without CLS."""

    def __init__(self, source: str, name: str, layer: int) -> None:
        timm = import_timm()
        with torch.device("meta"):
            model = self._create(timm, name, pretrained=False)
        if not isinstance(model, timm.models.VisionTransformer):
            raise ValueError(f"{source} is a {type(model).__name__} of timm; allowed: a plain ViT (VisionTransformer)")
        height, width = model.patch_embed.img_size
        patch, across = model.patch_embed.patch_size
        if (height, patch) != (width, across):
            raise ValueError(
                f"{source} takes {height} x {width} px in patches of {patch} x {across}; both must be square"
            )
        kept = kept_layers(source, len(model.blocks), layer)
        arguments = {"img_size": height, "depth": kept, "global_pool": "", "final_norm": False}
        sizes: dict[str, Any] = {"hidden_size": model.embed_dim, "image_size": height, "patch_size": patch}
        config = TimmWrapperConfig(
            architecture=model.pretrained_cfg["architecture"],
            model_args={**stored_arguments(name), **arguments},
            do_pooling=False,
            **sizes,  # as LLaVA's classes ask a tower's config for them
        )
        super().__init__(source, config, (kept, len(model.blocks)), "full")
        self.name, self.pretrained_cfg = name, model.pretrained_cfg

    def load(self, dtype: torch.dtype) -> nn.Module:
        model: Any = self._create(import_timm(), self.name, pretrained=True)
        model.prune_intermediate_layers([self.config.model_args["depth"] - 1], prune_norm=True)
        with torch.device("meta"):
            wrapper: Any = AutoModel.from_config(self.config)
        wrapper.timm_model = model.to(dtype)
        return wrapper

    def normalisation(self) -> dict[str, Any]:
        given = self.pretrained_cfg
        resample = Resampling[given["interpolation"].upper()]
        return {"image_mean": list(given["mean"]), "image_std": list(given["std"]), "resample": resample}

    @staticmethod
    def _create(timm: Any, name: str, *, pretrained: bool) -> Any:
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0)
        except RuntimeError as error:
            raise ValueError(f"timm:{name}: {error}; allowed: {FORMS}") from error


def import_timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError("a timm: tower needs timm; `pip install timm`, or take the tower with hf:") from error
    return timm


def stored_arguments(name: str) -> dict[str, Any]:
    """What the config.json of a timm checkpoint gives its architecture beyond the defaults; nothing for plain names."""
    place, _, where = name.partition(":")
    if place not in ("local-dir", "hf-hub"):
        return {}
    path = file_beside(where, "config.json")
    if path is None:
        raise FileNotFoundError(f"{where} has no config.json; give a folder or repository that timm has written")
    given = json.loads(path.read_text("utf-8")).get("model_args") or {}
    return {key: value for key, value in given.items() if key not in ("num_classes", "in_chans")}


def kept_layers(source: str, depth: int, layer: int) -> int:
    if not -depth <= layer <= -1:
        raise ValueError(f"{source} has {depth} layers, none of them {layer}; allowed: -{depth} to -1, the last")
    return depth + layer + 1


def read_config(name: str) -> PreTrainedConfig:
    """The config of a hub id or folder. FileNotFoundError when it cannot be had, ValueError when it is of no model."""
    try:
        return AutoConfig.from_pretrained(name)
    except OSError as error:
        raise FileNotFoundError(
            f"{name}: no folder with a config.json, and no such checkpoint could be had from the hub"
        ) from error


def check_whole(source: str, info: dict[str, Any]) -> None:
    if missing := sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]])):
        raise ValueError(f"{source} lacks weights, or has others than its config says: {', '.join(missing[:5])}")
