"""The optimizer's part of a training step, the same for both stages that come before `dynimg train`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup


class Descent:
    """AdamW with clipped gradients, 100 steps of warm-up and a cosine; keeps every loss and prints some."""

    def __init__(
        self, weights: Iterable[nn.Parameter], lr: float, steps: int, *, weight_decay: float, beta2: float
    ) -> None:
        self.weights = list(dict.fromkeys(weights))
        self.optimizer = torch.optim.AdamW(self.weights, lr=lr, weight_decay=weight_decay, betas=(0.9, beta2))
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, 100, steps)
        self.losses: list[float] = []

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) % 250 == 0:
            print(f"  step {len(self.losses)}: loss {sum(self.losses[-100:]) / 100:.3f}", flush=True)
