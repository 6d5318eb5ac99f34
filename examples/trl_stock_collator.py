"""LoRA on precomposed DynImgs with TRL's own collator: python examples/trl_stock_collator.py BASE DATA OUTPUT [STEPS]

The DynImgs are ordinary pictures in an `images` column, so any engine that takes images can train on them. DATA is a
.json or .jsonl file, or motion_qa_mc:20 for clips that the package draws itself.
"""

from __future__ import annotations

import sys

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from dynimg_plugin import load
from dynimg_plugin.training import DynImgCallback, DynImgDataset, lora_config


def precomposed(data: str, processor) -> Dataset:
    """{"images", "prompt", "completion"}: the prompt is rendered here, with one image token for all DynImgs of a video.

    TRL's `messages` would write one image token per picture, which is not what generation shows the model.
    """
    rows = []
    for sample in DynImgDataset(data, processor):
        *asked, answer = sample["messages"]
        rows.append(
            {
                "images": [dynimg.image for video in sample["videos"] for dynimg in video],
                "prompt": processor.apply_chat_template(asked, add_generation_prompt=True),
                "completion": answer["content"][0]["text"] + processor.tokenizer.eos_token,
            }
        )
    return Dataset.from_list(rows)


def main(base: str, data: str, output: str, steps: int = 3) -> None:
    model, processor = load(base, dtype="float32")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output,
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-4,
            logging_steps=1,
            bf16=False,
            activation_checkpointing=True,
            max_length=None,  # TRL's default would cut visual tokens off
        ),
        train_dataset=precomposed(data, processor),
        processing_class=processor,
        peft_config=lora_config(r=16, alpha=32),
    )
    trainer.add_callback(DynImgCallback(trainer, theta_lr=1e-2))  # theta's own learning rate, and checks
    trainer.train()
    trainer.save_model(output)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
