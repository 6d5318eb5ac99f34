"""Run by torchrun on two ranks: the same set on DDP, then on FSDP2. Not a test itself."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from trainings import losses, quick

from dynimg_plugin.training import callback, run
from dynimg_plugin.training.parts import theta_parameters

FSDP2 = Path(__file__).parents[1] / "examples" / "accelerate" / "fsdp2.yaml"
ENGINE: dict[str, Any] = {}


def set_up_fsdp() -> None:
    """What `accelerate launch` makes of the file, and one lie: accelerate knows FSDP on accelerators alone."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for name, value in yaml.safe_load(FSDP2.read_text("utf-8"))["fsdp_config"].items():
        os.environ[name.replace("fsdp_", "FSDP_", 1).upper()] = (
            str(value).lower() if value in (True, False) else str(value)
        )
    arguments = run.training_arguments

    def on_gpus(config: Any) -> Any:
        made = arguments(config)
        assert made.distributed_state is not None
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return made

    run.training_arguments = on_gpus


class Watched(callback.DynImgCallback):
    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        theta = theta_parameters(self.trainer.model)[0]
        ENGINE.update(type=type(theta).__name__, dtype=str(theta.dtype), ranks=self.trainer.args.world_size)


def main(base: Path, base_bf16: Path, rows: Path, output: Path) -> None:
    run.DynImgCallback = Watched
    options = {"per_device_train_batch_size": 1, "max_steps": 6, "lora_dropout": 0.0, "seed": 2}
    ddp = quick(base, output / "ddp", data=str(rows), activation_checkpointing=True, **options)
    found = {"ddp": {"losses": losses(ddp), **ENGINE}}
    full = quick(
        base,
        output / "ddp_full",
        data=str(rows),
        activation_checkpointing=True,
        preset="paper_full",
        lora_r=0,
        **options,
    )
    found["ddp_full"] = {"losses": losses(full), **ENGINE}
    set_up_fsdp()
    options |= {"max_steps": 3, "bf16": True}
    fsdp = quick(base_bf16, output / "fsdp", data="motion_qa_mc:6", **options)
    found["fsdp"] = {"losses": losses(fsdp), **ENGINE}
    if os.environ["RANK"] == "0":
        (output / "found.json").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
