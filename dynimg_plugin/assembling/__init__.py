"""The paper's own model from parts: vision tower, fresh MLP projector and language model in one LLaVA checkpoint."""

from dynimg_plugin.assembling.assembly import Parts, assemble, count_parts
from dynimg_plugin.assembling.towers import Tower, read_tower

__all__ = ["Parts", "Tower", "assemble", "count_parts", "read_tower"]
