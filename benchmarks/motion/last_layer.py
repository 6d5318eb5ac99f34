"""The last decoder layer, computed where it is read: at the questions. Exact, and a third off a step's time.

Keys and values come from all tokens; queries, output projection and MLP from the questions alone, for no later layer
looks at what the last one makes of visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb, eager_attention_forward


@contextmanager
def only(model: Any, questions: int) -> Iterator[None]:
    """Meanwhile the language model returns the hidden states of its last `questions` tokens alone."""
    decoder = model.model.language_model
    last = decoder.layers[-1]
    last.forward = partial(_forward, last, questions)  # hooks of the layer still run: they finish 4D RoPE's angles
    try:
        yield
    finally:
        del last.forward


def _forward(
    layer: Any,
    questions: int,
    hidden_states: Tensor,
    attention_mask: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    **_: Any,
) -> Tensor:
    attention, asked = layer.self_attn, slice(-questions, None)
    seen = layer.input_layernorm(hidden_states)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    cos, sin = position_embeddings
    query, key = heads(attention.q_proj(seen[:, asked])), heads(attention.k_proj(seen))
    query = apply_rotary_pos_emb(query, query, cos[:, asked], sin[:, asked])[0]
    key = apply_rotary_pos_emb(key, key, cos, sin)[0]
    value, mask = heads(attention.v_proj(seen)), attention_mask[:, :, asked]
    mixed = eager_attention_forward(attention, query, key, value, mask, attention.scaling)[0]
    answer = hidden_states[:, asked] + attention.o_proj(mixed.flatten(2))
    return answer + layer.mlp(layer.post_attention_layernorm(answer))
