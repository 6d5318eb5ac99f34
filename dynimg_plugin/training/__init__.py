"""Training on HF Trainer or TRL with peft: data set, collator, callback, presets and the run of `dynimg train`."""

from dynimg_plugin.training.callback import DynImgCallback
from dynimg_plugin.training.collator import DynImgCollator
from dynimg_plugin.training.config import PRESETS, TrainConfig, read_config
from dynimg_plugin.training.dataset import DynImgDataset, TooManyBroken
from dynimg_plugin.training.memory import Plan, plan
from dynimg_plugin.training.parts import lora_config, parameter_groups
from dynimg_plugin.training.run import TrainResult, train

__all__ = [
    "PRESETS",
    "DynImgCallback",
    "DynImgCollator",
    "DynImgDataset",
    "Plan",
    "TooManyBroken",
    "TrainConfig",
    "TrainResult",
    "lora_config",
    "parameter_groups",
    "plan",
    "read_config",
    "train",
]
