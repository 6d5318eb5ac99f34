"""The rotary wrapper against angles computed directly, on every kind of base that transformers has."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GlmConfig, LlamaConfig, Qwen2Config
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from dynimg_plugin.compat import rope_fields
from dynimg_plugin.ops.reference import SPREAD, turn
from dynimg_plugin.rope import DynImgRotaryEmbedding, turned

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 256}
KINDS = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "yarn": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 128},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "rope_theta": 1e4,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}
POSITIONS = torch.arange(12)[None]


def base(kind: str = "default", cls: type = LlamaRotaryEmbedding) -> nn.Module:
    config = {LlamaRotaryEmbedding: LlamaConfig, Qwen2RotaryEmbedding: Qwen2Config}[cls]
    return cls(config(**SIZES, **rope_fields(**KINDS[kind])))


def with_theta(rotary: nn.Module, layers: int | None = None) -> DynImgRotaryEmbedding:
    wrapper = DynImgRotaryEmbedding(rotary, layers)
    generator = torch.Generator().manual_seed(0)
    for theta in wrapper.thetas:
        theta.data = torch.randn(theta.shape, generator=generator)
    wrapper.coordinates = torch.randn(2, 12, 3, generator=generator) * 4
    return wrapper


@pytest.mark.oldest
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", [LlamaRotaryEmbedding, Qwen2RotaryEmbedding])
def test_the_angles_add_up_on_every_kind_of_base(kind, cls):
    wrapper = with_theta(base(kind, cls))
    cos, sin = wrapper(torch.zeros(2, 12, 64), POSITIONS)
    scale = wrapper.attention_scaling
    angle = POSITIONS[..., None] * wrapper.inv_freq
    angle = angle + sum(wrapper.coordinates[..., i : i + 1] * theta for i, theta in enumerate(wrapper.thetas))
    angle = torch.cat((angle, angle), -1)
    torch.testing.assert_close(cos, angle.cos() * scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(sin, angle.sin() * scale, atol=1e-5, rtol=0)


def test_interleaved_and_partial_layouts_are_found():
    config = GlmConfig(**SIZES, head_dim=16, num_key_value_heads=2, **rope_fields(**KINDS["default"]))
    wrapper = with_theta(GlmRotaryEmbedding(config))
    plain = GlmRotaryEmbedding(config)(torch.zeros(2, 12, 64), POSITIONS)
    assert wrapper.num_frequencies * 2 == plain[0].shape[-1]
    wrapper.coordinates = torch.zeros(2, 12, 3)
    assert torch.equal(wrapper(torch.zeros(2, 12, 64), POSITIONS)[0], plain[0].expand(2, -1, -1))


def test_interleaved_angles_repeat_side_by_side():
    theta = torch.tensor([[0.1, 0.2], [0.0, 0.0], [0.0, 0.0]])
    cos, sin = turn(torch.ones(1, 1, 4), torch.zeros(1, 1, 4), torch.ones(1, 1, 3), theta, "interleaved")
    torch.testing.assert_close(sin[0, 0], torch.tensor([0.1, 0.1, 0.2, 0.2]).sin())
    torch.testing.assert_close(cos[0, 0], torch.tensor([0.1, 0.1, 0.2, 0.2]).cos())


def test_zero_theta_is_the_base_bit_for_bit_in_every_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.zeros(1, 12, 64, dtype=dtype)
        wrapper = DynImgRotaryEmbedding(base("yarn"))
        wrapper.coordinates = torch.randn(1, 12, 3)
        for ours, theirs in zip(wrapper(x, POSITIONS), base("yarn")(x, POSITIONS), strict=True):
            assert torch.equal(ours, theirs.to(dtype))
            assert ours.dtype == theirs.dtype


def test_without_gradients_and_coordinates_the_base_is_not_touched():
    wrapper = DynImgRotaryEmbedding(base())
    with torch.no_grad():
        assert all(not out.requires_grad for out in wrapper(torch.zeros(1, 12, 64), POSITIONS))
    assert all(out.requires_grad for out in wrapper(torch.zeros(1, 12, 64), POSITIONS))


def test_theta_keeps_its_fp32_value_when_the_model_is_cast():
    wrapper = with_theta(base())
    before = wrapper.theta_h.detach().clone()
    wrapper.to(torch.bfloat16).half()
    assert wrapper.theta_h.dtype == torch.float32
    assert torch.equal(wrapper.theta_h, before)


def test_autocast_does_not_round_the_angles():
    wrapper = with_theta(base())
    exact = wrapper(torch.zeros(2, 12, 64), POSITIONS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(wrapper(torch.zeros(2, 12, 64), POSITIONS)[0], exact)


def test_each_layer_takes_its_own_row():
    wrapper = with_theta(base(), layers=2)
    base_tables, angle = wrapper(torch.zeros(2, 12, 64), POSITIONS)
    tables = [SPREAD[wrapper.layout](table) for table in (base_tables.cos, base_tables.sin)]
    rows = [turned(*tables, angle.of_layer(i), wrapper.layout, torch.float32)[0] for i in range(2)]
    assert not torch.equal(*rows)
    shared = with_theta(base())
    for axis in "thw":
        getattr(shared, f"theta_{axis}").data = getattr(wrapper, f"theta_{axis}").data[1]
    assert torch.equal(shared(torch.zeros(2, 12, 64), POSITIONS)[0], rows[1])


class ComplexRotary(nn.Module):
    def forward(self, x, position_ids):
        return torch.polar(torch.ones(1, 1, 4), torch.zeros(1, 1, 4))


def test_a_rotary_that_is_no_pair_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"ComplexRotary cannot be wrapped: it returned complex.*rope_4d=False"):
        DynImgRotaryEmbedding(ComplexRotary())
