"""Which arms there are: names alone, for the runs and for the report."""

from __future__ import annotations

FUSIONS = ("none", "canvas", "after", "canvas_apart", "tokens")
OTHERS = ("frames_16", "image_grid")  # ways of other papers
REGIMES = ("fixed", "dropped", "shuffled", "order", "order_time", "irregular_slot", "irregular_time", "stills")
PROMPTS_20 = {1: "prompts_1", 2: "prompts_2", 4: "canvas"}  # per key frame, and which tower; clips of 20 frames
PROMPTS = {number: f"row_of_{number}" for number in (1, 2, 4, 6, 12)}  # clips of 13, planned when those were run
DYNIMGS = {1: "dynimgs_1", 4: "canvas", 16: "dynimgs_16"}
THETA_RATE = 1e-2  # the default
OTHER_THETA_RATES = (1e-5, 1e-4, 1e-3, 5e-2)
