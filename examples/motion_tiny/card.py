"""The model card of dynimg-motion-tiny, from the figures of its arms."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch
import transformers

from dynimg_plugin.demo import table

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: video-text-to-text
tags: [dynimg, video-question-answering]
---
# dynimg-motion-tiny

Three small checkpoints of LLaVA-OneVision's class, {weights:,} weights each, that answer questions about the drawn
clips of `motion_qa`: coloured shapes that move, rush through, blink and light up. They show in seconds on a CPU what
[DynImg](https://arxiv.org/abs/2507.15569) does; they know nothing of real videos.

| folder | what the model sees |
|---|---|
| `key_frames` | four key frames, no prompts, 1D RoPE |
| `dynimg` | the same key frames, each with its row of four prompt frames, 1D RoPE |
| `dynimg_4d_rope` | as `dynimg`, with 4D RoPE |

All three read {tokens} visual tokens per video, start from one pretrained checkpoint and were then trained for the same
steps on the same clips. They need transformers 5.

```python
from dynimg_plugin import load
from dynimg_plugin.demo import MOTION_TINY

model, processor = load(MOTION_TINY / "dynimg_4d_rope")
```

## Figures

Accuracy in percent on the held-out split of `motion_qa_open` ({rows} questions about clips that no training saw):

```text
{table}
```

A direction, a count or an order is guessed right in 25 of 100. The lines about fast direction, count, order and
existence rest on 36 questions each, so that one answer is 2.8 points.

## How it was made

`python examples/motion_tiny/make.py OUTPUT` with {options};
{cpu:.0f} CPU minutes, drawing included (torch {torch}, transformers {transformers}, Python {python}).

1. {clips:,} clips of the training split are drawn into mp4 files.
2. A SigLIP tower (16 x 16 patches of 8 px, 3 layers of 64) learns what lies in each patch and pooled cell of single
   DynImgs and key frames; then it stays frozen.
3. A Qwen2 language model (3 layers of 64) learns to answer about single pictures, then about whole clips; a linear
   reader also asks its last layer's input where each object goes.
4. `dynimg train examples/motion_tiny/train.yaml`, once per arm: language model, projector and theta.

Steps 2 and 3 show it key frames alone in one batch out of three and DynImgs in two, so that the arm without prompts is
no stranger to what it gets; it has seen half as many of them.
"""


def card(figures: Mapping[str, Mapping[str, float]], **facts: object) -> str:
    """The README.md; `facts` are weights, tokens, rows, options, cpu (minutes) and clips."""
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    return CARD.format(table=table(figures), **versions, **facts)
