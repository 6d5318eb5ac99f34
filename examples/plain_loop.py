"""LoRA with DynImgs in a plain PyTorch loop: python examples/plain_loop.py BASE DATA OUTPUT [STEPS]

DATA is a .json or .jsonl file, or motion_qa_mc:20 for clips that the package draws itself.
"""

from __future__ import annotations

import sys

import torch
from peft import get_peft_model
from torch.utils.data import DataLoader

from dynimg_plugin import load
from dynimg_plugin.training import DynImgCollator, DynImgDataset, lora_config, parameter_groups


def main(base: str, data: str, output: str, steps: int = 3) -> None:
    torch.manual_seed(0)
    model, processor = load(base, dtype="float32")
    model = get_peft_model(model, lora_config(r=16, alpha=32)).train()
    dataset = DynImgDataset(data, processor, seed=0)  # a seed draws prompt frames at random
    batches = DataLoader(dataset, batch_size=2, shuffle=True, collate_fn=DynImgCollator(processor))
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-4, theta_lr=1e-2))
    step = 0
    while step < steps:
        for batch in batches:
            loss = model(**{name: value.to(model.device) for name, value in batch.items()}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            print(f"step {step} loss {loss.item():.4f}")
            if step == steps:
                break
    model.save_pretrained(output)
    processor.save_pretrained(output)  # dynimg_config.json, which load() needs


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
