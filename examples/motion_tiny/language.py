"""Stage 2: the language model learns to look things up in single pictures, before it reads four of them in a row.

Short sequences make the first steps cheap, and what is asked can be found in the one picture that is there. From
random weights and whole clips, no direction between key frames was learned within 1,500 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from base import ANSWER, SIMPLE
from pictures import Pictures
from steps import Descent
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tower import visual_tokens

from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, SEGMENT, Scene

BATCH = 48  # pictures
ASKED = 2  # shapes and presences per picture


def questions(scene: Scene, frames: Sequence[int], rng: np.random.Generator) -> list[tuple[str, str]]:
    """(question, answer) about what one picture's frames show, in random order."""
    shapes = {
        track.colour: track.shape for track in scene.tracks if any(track.at(frame) is not None for frame in frames)
    }
    always = (scene.slow.colour, scene.static.colour)
    shown, events = list(shapes), [colour for colour in shapes if colour not in always]
    absent = [colour for colour in COLOURS if colour not in shapes]
    asked = []
    for _ in range(ASKED):
        colour = _either(events, shown, rng)
        asked.append((SIMPLE["shape"].format(colour), shapes[colour]))
    for _ in range(ASKED):
        colour = _either(absent, [_either(events, shown, rng)], rng)
        asked.append((SIMPLE["presence"].format(colour), "yes" if colour in shapes else "no"))
    if _rushes(scene, frames):
        asked.append((SIMPLE["direction"].format(scene.events["fast"][0].colour), scene.fast_direction))
    return [asked[i] for i in rng.permutation(len(asked))]


def _either(first: list[str], second: list[str], rng: np.random.Generator) -> str:
    """One of the first or of the second, at even odds; of the second where there is no first."""
    among = first if first and rng.integers(2) else second
    return among[rng.integers(len(among))]


@torch.no_grad()
def all_tokens(model: Any, pictures: Pictures) -> Tensor:
    """The visual tokens of every picture, (n, cells, .) float16: the tower is frozen, so each is looked at once."""
    parts = np.array_split(np.arange(len(pictures.pixels)), -(-len(pictures.pixels) // 64))
    return torch.cat([visual_tokens(model, pictures.values(part), pictures.layout)[1].half() for part in parts])


def rushing(pictures: Pictures) -> np.ndarray:
    """The numbers of the pictures whose prompts show an object that rushes through."""
    return np.array([i for i, of in enumerate(zip(pictures.scenes, pictures.frames, strict=True)) if _rushes(*of)], int)


def _rushes(scene: Scene, frames: Sequence[int]) -> bool:
    fast = scene.events.get("fast")
    return len(frames) > 1 and fast is not None and fast[0].spans[0].first // SEGMENT == frames[0] // SEGMENT


def choose(pictures: Pictures, often: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """BATCH numbers of pictures, about every other one out of `often`."""
    chosen = rng.integers(len(pictures.scenes), size=BATCH)
    return np.where(rng.integers(2, size=BATCH), rng.choice(often, BATCH), chosen) if len(often) else chosen


class Conversations:
    """Pictures and questions as the language model's inputs: start, visual tokens, question, answer, question, ..."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.start, self.answer, self.end = (
            tokenizer(text).input_ids for text in ("<|im_start|>", ANSWER, "<|im_end|>")
        )

    def loss(self, tokens: Tensor, asked: Sequence[Sequence[tuple[str, str]]]) -> Tensor:
        """Cross-entropy of the answers and what ends them, given visual tokens (n, cells, .) and n conversations."""
        rows = [self.row(conversation) for conversation in asked]
        ids = pad_sequence([row[0] for row in rows], batch_first=True)
        wanted = pad_sequence([row[1] for row in rows], batch_first=True, padding_value=-100)
        language, n = self.model.model.language_model, tokens.shape[1]
        start = language.embed_tokens(torch.tensor(self.start)).expand(len(rows), 1, -1)
        hidden = language(inputs_embeds=torch.cat([start, tokens, language.embed_tokens(ids)], 1)).last_hidden_state
        answers = wanted != -100
        return F.cross_entropy(self.model.lm_head(hidden[:, n:-1][answers]), wanted[answers])

    def row(self, asked: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
        """(input ids, labels) of a conversation after its picture; labels stand on answers alone."""
        ids: list[int] = []
        labels: list[int] = []
        for question, answer in asked:
            before = (self.start if ids else []) + self.tokenizer(question).input_ids + self.answer
            after = self.tokenizer(answer).input_ids + self.end
            ids, labels = ids + before + after, labels + [-100] * len(before) + after
        return torch.tensor(ids), torch.tensor(labels)


def teach_language(model: Any, kinds: Sequence[Pictures], *, steps: int, seed: int, lr: float = 3e-3) -> list[float]:
    """Train the language model in place, tower and projector frozen, the kinds of pictures in turns.

    Returns:
        the loss of every step.
    """
    language, rng = model.model.language_model, np.random.default_rng(seed)
    conversations = Conversations(model, kinds[0].processor.tokenizer)
    descent = Descent(language.parameters(), lr, steps, weight_decay=0.01, beta2=0.99)
    seen = {id(kind): (all_tokens(model, kind), rushing(kind)) for kind in kinds}
    for step in range(steps):
        kind = kinds[step % len(kinds)]
        tokens, often = seen[id(kind)]
        chosen = choose(kind, often, rng)
        asked = [questions(kind.scenes[i], kind.frames[i], rng) for i in chosen]
        descent.step(conversations.loss(tokens[chosen].float(), asked))
    return descent.losses
