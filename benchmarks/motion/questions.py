"""The questions about a clip, the number of their answers, and their groups, fixed before any run."""

from __future__ import annotations

ANSWERS = {  # question -> how many answers it has
    "direction_slow": 4,  # where the slow disc moves: left, right, up, down
    "direction_fast": 4,  # where the streak crosses: it is in four frames between key frames
    "attribute": 6,  # the moving disc's colour
    "existence": 2,  # whether there is a flash
    "where": 3,  # the still disc's third of the picture
    "when": 4,  # at which of four times the streak crosses
    "side": 3,  # the flash: none, before or after the nearest key frame
    "static": 6,  # the still disc's colour
}
QUESTIONS = tuple(ANSWERS)
GROUPS = {
    "key": ("direction_slow", "attribute", "where", "static"),  # key frames show the answer
    "between": ("direction_fast", "existence", "when", "side"),  # only the frames between them do
    "position": ("direction_fast", "side"),  # the order of prompt frames decides
}
CHANCE = {question: 100 / answers for question, answers in ANSWERS.items()}
