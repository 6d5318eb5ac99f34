"""Stages 2 and 3: the language model learns to look things up, first in single pictures, then in whole clips.

Short sequences make the first steps cheap, and what is asked can be found in the one picture that is there. From
random weights and whole clips, no direction between key frames was learned within 1,500 steps. On clips, a linear
reader of the last layer's input also learns where each object goes, from the tokens that show it: with it slow
directions take 750 steps, without it 3,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from base import ANSWER, SIMPLE
from clips import conversation
from moves import MOVES, moves
from pictures import Pictures
from steps import Descent
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tower import visual_tokens

from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, SEGMENT, Scene

PICTURES, CLIPS = 48, 16  # in a batch
MOVES_WEIGHT = 0.5
ASKED = 2  # shapes and presences per picture
Asked = list[tuple[str, str]]  # questions and answers


def questions(scene: Scene, frames: Sequence[int], rng: np.random.Generator) -> Asked:
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


def _rushes(scene: Scene, frames: Sequence[int]) -> bool:
    fast = scene.events.get("fast")
    return len(frames) > 1 and fast is not None and fast[0].spans[0].first // SEGMENT == frames[0] // SEGMENT


class PictureLesson:
    """Questions about single pictures; about every other one shows an object that rushes through, if any does."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.moves = pictures, moves(pictures, per_clip=1)
        rushes = map(_rushes, pictures.scenes, pictures.frames)
        self.often = np.flatnonzero(np.fromiter(rushes, bool, len(pictures.scenes)))

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Asked]]:
        chosen = rng.integers(len(self.pictures.scenes), size=PICTURES)
        if len(self.often):
            chosen = np.where(rng.integers(2, size=PICTURES), rng.choice(self.often, PICTURES), chosen)
        return chosen[:, None], [questions(self.pictures.scenes[i], self.pictures.frames[i], rng) for i in chosen]


class ClipLesson:
    """Questions about whole clips, whose pictures lie one after the other."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.each = pictures, pictures.processor.config.num_images
        self.moves = moves(pictures, per_clip=self.each)

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, list[Asked]]:
        first = rng.integers(len(self.pictures.scenes) // self.each, size=CLIPS) * self.each
        return first[:, None] + np.arange(self.each), [conversation(self.pictures.scenes[i], rng) for i in first]


class Conversations:
    """Pictures and questions as the language model's inputs: start, visual tokens, question, answer, question, ..."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.start, self.answer, self.end = (
            tokenizer(text).input_ids for text in ("<|im_start|>", ANSWER, "<|im_end|>")
        )

    def loss(self, tokens: Tensor, asked: Sequence[Asked]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of the answers and what ends them, given visual tokens (n, cells, .) and n conversations.

        Also returns what the last layer is given, (n, sequence, .).
        """
        rows = [self.row(conversation) for conversation in asked]
        ids = pad_sequence([row[0] for row in rows], batch_first=True)
        wanted = pad_sequence([row[1] for row in rows], batch_first=True, padding_value=-100)
        language, n = self.model.model.language_model, tokens.shape[1]
        start = language.embed_tokens(torch.tensor(self.start)).expand(len(rows), 1, -1)
        embeds = torch.cat([start, tokens, language.embed_tokens(ids)], 1)
        out = language(inputs_embeds=embeds, output_hidden_states=True)
        answers = wanted != -100
        logits = self.model.lm_head(out.last_hidden_state[:, n:-1][answers])
        return F.cross_entropy(logits, wanted[answers]), out.hidden_states[-2]

    def row(self, asked: Asked) -> tuple[Tensor, Tensor]:
        """(input ids, labels) of a conversation after its picture; labels stand on answers alone."""
        ids: list[int] = []
        labels: list[int] = []
        for question, answer in asked:
            before = (self.start if ids else []) + self.tokenizer(question).input_ids + self.answer
            after = self.tokenizer(answer).input_ids + self.end
            ids, labels = ids + before + after, labels + [-100] * len(before) + after
        return torch.tensor(ids), torch.tensor(labels)


class Language:
    """Trains the language model in place, tower and projector frozen, the kinds of pictures in turns."""

    def __init__(self, model: Any, kinds: Sequence[Pictures], *, seed: int) -> None:
        self.model, self.kinds = model, kinds
        self.tokens = {id(kind): all_tokens(model, kind) for kind in kinds}
        torch.manual_seed(seed)
        self.reader = torch.nn.Linear(model.config.text_config.hidden_size, len(MOVES))
        self.conversations = Conversations(model, kinds[0].processor.tokenizer)

    def teach(self, lesson: type[PictureLesson] | type[ClipLesson], *, steps: int, seed: int, lr: float) -> list[float]:
        """Teach one kind of lesson; returns the loss of every step."""
        lessons, rng = {id(kind): lesson(kind) for kind in self.kinds}, np.random.default_rng(seed)
        weights = [*self.model.model.language_model.parameters(), *self.reader.parameters()]
        descent = Descent(weights, lr, steps, weight_decay=0.01, beta2=0.99)
        for step in range(steps):
            kind = id(self.kinds[step % len(self.kinds)])
            pictures, asked = lessons[kind](rng)
            seen, goes = (of[pictures].flatten(1, 2).float() for of in (self.tokens[kind], lessons[kind].moves))
            descent.step(self.loss(seen, goes, asked))
        return descent.losses

    def loss(self, tokens: Tensor, goes: Tensor, asked: Sequence[Asked]) -> Tensor:
        """Of the answers, and of the reader on tokens that show an object."""
        answers, states = self.conversations.loss(tokens, asked)
        known = goes.any(-1)
        read = self.reader(states[:, 1 : goes.shape[1] + 1][known])  # the first state is the start token's
        wrong = F.binary_cross_entropy_with_logits(read, goes[known], reduction="sum") / max(goes[known].numel(), 1)
        return answers + MOVES_WEIGHT * wrong
