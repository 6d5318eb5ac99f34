"""Questions about a scene, the two ways to put them, and which replies are right. No files, no lmms-eval."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, DIRECTIONS, SHAPES, Scene, deal, event_rank
from dynimg_plugin.evaluation.answers import exact_match, read_letter

KEY_FRAME_CATEGORIES = ("direction_slow", "attribute", "static")  # answered by the four key frames
BETWEEN_CATEGORIES = ("direction_fast", "count", "order", "existence")  # answered only by frames between them
CATEGORIES = KEY_FRAME_CATEGORIES + BETWEEN_CATEGORIES
LETTERS = "ABCD"
COUNTS = ("1", "2", "3", "4")


@dataclass(frozen=True)
class Question:
    """What is asked about a clip. `answer` is one of `options`, which stand in the order in which they are shown."""

    category: str
    question: str
    options: tuple[str, ...]
    answer: str

    @property
    def letter(self) -> str:
        """The answer's letter, "A" for the first option."""
        return LETTERS[self.options.index(self.answer)]


def questions(scene: Scene) -> list[Question]:
    """Five questions: the slow object's direction, one more about what all frames show, and one per event.

    A guess is right one time in four, for existence one time in two; on events, key frames help nobody to do better.
    """
    slow, attribute, static = about_key_frames(scene)
    asked = [slow, static if scene.seed % 2 else attribute]
    makers = {"fast": _direction_fast, "count": _count, "order": _order, "flash": _existence}
    return asked + [makers[event](scene) for event in scene.events]


def about_key_frames(scene: Scene) -> tuple[Question, Question, Question]:
    """One question of each of KEY_FRAME_CATEGORIES; a clip of the task has two of them."""
    return _direction_slow(scene), _attribute(scene), _static(scene)


def _direction_slow(scene: Scene) -> Question:
    text = "In which direction does the object move that goes slowly through the whole clip: left, right, up or down?"
    return _ask(scene, "direction_slow", text, tuple(DIRECTIONS), scene.slow_direction, scene.seed)


def _attribute(scene: Scene) -> Question:
    one, other = scene.slow, scene.static
    options = tuple(f"{colour} {shape}" for colour in (one.colour, other.colour) for shape in (one.shape, other.shape))
    text = "Which object moves slowly through the whole clip? Name its colour and its shape."
    return _ask(scene, "attribute", text, options, one.name, scene.seed // 2)


def _static(scene: Scene) -> Question:
    text = "What shape is the object that never moves: circle, square, triangle or cross?"
    return _ask(scene, "static", text, SHAPES, scene.static.shape, scene.seed // 2)


def _direction_fast(scene: Scene) -> Question:
    name = _a(scene.events["fast"][0].name).capitalize()
    text = f"{name} rushes through the picture. In which direction does it move: left, right, up or down?"
    rank = event_rank(scene.seed, "fast")
    return _ask(scene, "direction_fast", text, tuple(DIRECTIONS), scene.fast_direction, rank)


def _count(scene: Scene) -> Question:
    blob = scene.events["count"][0]
    text = f"How many times does {_a(blob.name)} appear for a moment: 1, 2, 3 or 4 times?"
    return _ask(scene, "count", text, COUNTS, str(len(blob.spans)), event_rank(scene.seed, "count"))


def _order(scene: Scene) -> Question:
    """Two of the options blink; the other two are colours that no key frame shows, so that none can be ruled out."""
    shown = tuple(light.colour for light in scene.events["order"])
    unseen = [colour for colour in COLOURS if colour not in (*shown, scene.slow.colour, scene.static.colour)]
    others = _rng(scene.seed, "order others").permutation(len(unseen))[:2]
    text = "Two lights come on, one after the other. Which colour is the first one?"
    options = (*shown, *(unseen[i] for i in others))
    return _ask(scene, "order", text, options, shown[0], event_rank(scene.seed, "order"))


def _existence(scene: Scene) -> Question:
    text = f"Does {_a(scene.asked)} light up for a moment, yes or no?"
    answer = "yes" if scene.asked == scene.events["flash"][0].name else "no"
    return _ask(scene, "existence", text, ("yes", "no"), answer, event_rank(scene.seed, "flash"))


def _ask(scene: Scene, category: str, text: str, options: tuple[str, ...], answer: str, rank: int) -> Question:
    """Puts the answer at a dealt place among the other options, which are shuffled."""
    others = [option for option in options if option != answer]
    mixed = [others[i] for i in _rng(scene.seed, category).permutation(len(others))]
    mixed.insert(deal(f"letter {category}", rank, len(options)), answer)
    return Question(category, text, tuple(mixed), answer)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _rng(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(purpose.encode()), seed])


def multiple_choice_prompt(row: Mapping[str, Any]) -> str:
    """The question with lettered options."""
    options = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, row["options"], strict=False))
    return f"{row['question']}\nOptions:\n{options}\nAnswer with the option's letter."


def open_prompt(row: Mapping[str, Any]) -> str:
    """The question without options."""
    words = "a single word or phrase" if row["category"] == "attribute" else "a single word"
    return f"{row['question']}\nAnswer with {words}."


def score_multiple_choice(row: Mapping[str, Any], reply: str) -> bool:
    """Whether a reply names the right letter. A reply that cannot be read is wrong."""
    return read_letter(reply, row["options"]) == row["letter"]


def score_open(row: Mapping[str, Any], reply: str) -> bool:
    """Whether a reply is the answer after `normalise`."""
    return exact_match(reply, row["answer"])
