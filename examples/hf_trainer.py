"""LoRA with DynImgs in a script on transformers.Trainer: python examples/hf_trainer.py BASE DATA OUTPUT [STEPS]

DATA is a .json or .jsonl file, or motion_qa_mc:20 for clips that the package draws itself.
"""

from __future__ import annotations

import sys

from peft import get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

from dynimg_plugin import load
from dynimg_plugin.training import DynImgCallback, DynImgCollator, DynImgDataset, lora_config


def main(base: str, data: str, output: str, steps: int = 3) -> None:
    set_seed(0)
    model, processor = load(base, dtype="float32")
    model = get_peft_model(model, lora_config(r=16, alpha=32))  # patched first, then wrapped
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output,
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-4,
            logging_steps=1,
            remove_unused_columns=False,  # the rows are no tensors yet
        ),
        data_collator=DynImgCollator(processor),
        train_dataset=DynImgDataset(data, processor, seed=0),
        processing_class=processor,
    )
    trainer.add_callback(DynImgCallback(trainer, theta_lr=1e-2))  # theta's own learning rate, and checks
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
