"""The operator inside attention layers: the same answers as the PyTorch path, per instance, undone without a trace."""

from __future__ import annotations

from copy import deepcopy
from types import MethodType

import pytest
import torch
from modelling import (
    AXES,
    FAMILIES,
    decoder,
    enable_checkpointing,
    families_with,
    noise_video,
    patched,
    randomise_theta,
    rotary,
    sharpen,
    unpatched_logits,
)
from torch import nn

from dynimg_plugin import DynImgConfig, apply_dynimg, describe_dynimg, load, ops, remove_dynimg
from dynimg_plugin.attention import fusable, fuse, operator, own_forward
from dynimg_plugin.compat import takes_token_types
from dynimg_plugin.ops.native import load_native
from dynimg_plugin.rope import BaseTables, DynImgRotaryEmbedding, LearnableAngle
from dynimg_plugin.tiny import build_tiny, write_tiny

OWN_MROPE = ("qwen2_vl", "qwen2_5_vl", "glm4v")
pytestmark = pytest.mark.skipif(
    "cpu" not in load_native().devices, reason=f"no native operator here: {load_native().why}"
)


def fused(family, config=None):
    """A model whose attention runs the native operator, and its processor."""
    if family in OWN_MROPE and not takes_token_types():
        pytest.skip("in this transformers its attention puts M-RoPE's axes together itself: the PyTorch path serves it")
    return patched(family, config, implementation="native")


def pair(family, config=None):
    """The same model twice, with the native operator and without, and a processor."""
    native, processor = fused(family, config)
    plain, _ = patched(family, config, implementation="reference")
    for model in (native, plain):
        sharpen(model)
        randomise_theta(model)
    return native, plain, processor


def one(processor):
    return processor(text="What moves in this video?", videos=noise_video(), return_tensors="pt")


def attention(model):
    return [layer.self_attn for layer in decoder(model).layers]


@pytest.mark.oldest
@pytest.mark.parametrize(
    ("family", "case"), families_with((torch.float32, 2e-4, "shared"), (torch.bfloat16, 0.05, "per_layer"))
)
def test_a_trained_model_gives_the_reference_paths_logits(family, case):
    """Tolerance: 2e-4 in fp32 on logits of size 1 to 10; in bf16 a rounding step (0.8 %) of the largest one."""
    dtype, limit, scope = case
    native, plain, processor = pair(family, DynImgConfig(theta_scope=scope))
    inputs = one(processor)
    for model in (native, plain):
        model.to(dtype)
    logits = [model(**inputs).logits.float() for model in (native, plain)]
    torch.testing.assert_close(*logits, atol=limit, rtol=0.008)
    for name in AXES:
        getattr(rotary(plain), name).data.zero_()
    assert (plain(**inputs).logits - logits[1]).abs().max() > 0.1, "theta matters to these logits"


@pytest.mark.parametrize(("family", "case"), families_with(("shared", False), ("per_layer", True)))
def test_gradients_equal_the_reference_paths(family, case):
    scope, checkpointing = case
    models = pair(family, DynImgConfig(theta_scope=scope))
    inputs = one(models[2])
    for model in models[:2]:
        if checkpointing:
            model.train()
            enable_checkpointing(model)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
    native, plain = (dict(model.named_parameters()) for model in models[:2])
    for name, parameter in native.items():
        if parameter.grad is not None:
            limit = max(2e-5, 1e-3 * plain[name].grad.abs().max().item())  # sharpened attention magnifies rounding
            torch.testing.assert_close(parameter.grad, plain[name].grad, atol=limit, rtol=1e-3, msg=name)
    assert all(getattr(rotary(models[0]), name).grad.norm() > 0 for name in AXES)


def test_the_operator_is_what_runs(monkeypatch):
    """Every layer goes through it; text alone and decoding do not."""
    model, processor = patched("llava_onevision", implementation="native")
    inputs, calls = one(processor), []
    monkeypatch.setattr("dynimg_plugin.attention.rope4d", lambda *a, **k: (calls.append(a), ops.rope4d(*a, **k))[1])
    layers = attention(model)
    model(**inputs)
    assert len(calls) == len(layers)
    calls.clear()
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert len(calls) == len(layers), "once, in the prefill"
    calls.clear()
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    assert not calls


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_removing_leaves_no_trace(family):
    model, _ = fused(family)
    assert all("forward" in module.__dict__ for module in attention(model))
    kind = type(attention(model)[0])
    remove_dynimg(model)
    assert all("forward" not in module.__dict__ for module in attention(model))
    assert own_forward(kind).__globals__["apply_rotary_pos_emb"].__module__ == kind.__module__, (
        "the module was never touched"
    )


@torch.no_grad()
def test_under_autocast_day_zero_keeps_its_bits():
    model, processor = patched("llava_onevision", implementation="native")
    plain, inputs = build_tiny("llava_onevision")[0], one(processor)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(**inputs).logits, unpatched_logits(plain, model, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("learns", [False, True])
def test_a_compiled_language_model_is_equal(learns):
    model, processor = patched("llava_onevision", implementation="native")
    randomise_theta(model)
    inputs = one(processor)
    with torch.set_grad_enabled(learns):
        expected = model(**inputs).logits
        layer = type(model.model.language_model.layers[0])
        model.model.language_model.layers[0].compile(backend="eager")
        assert isinstance(model.model.language_model.layers[0], layer)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_hooks_of_accelerate_may_lie_over_it():
    from accelerate.hooks import attach_execution_device_hook, remove_hook_from_submodules

    model, processor = patched("llava_onevision", implementation="native")
    inputs = one(processor)
    before = model(**inputs).logits
    attach_execution_device_hook(model, "cpu")
    assert torch.equal(model(**inputs).logits, before)
    with pytest.raises(TypeError, match="in use by other code"):
        remove_dynimg(model)
    remove_hook_from_submodules(model)
    assert torch.equal(model(**inputs).logits, before)
    remove_dynimg(model)


def test_tensors_that_something_rounded_are_refused():
    apply = operator(None, False)
    q, tables = torch.zeros(1, 1, 2, 4), BaseTables(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    angle = LearnableAngle(torch.zeros(1, 2, 3), torch.zeros(3, 2).bfloat16(), "native", torch.float32)
    with pytest.raises(TypeError, match=r"theta came as torch.bfloat16"):
        apply(q, q, tables, angle)
    with pytest.raises(TypeError, match=r"was called with \(\) {'unsqueeze_dim': 2}"):
        apply(q, q, tables, angle, unsqueeze_dim=2)


def test_apply_may_be_called_in_a_meta_context():
    model, _ = build_tiny("llava")
    with torch.device("meta"):
        apply_dynimg(model, implementation="native")


def test_a_copy_runs_its_own_weights():
    model, processor = patched("llava_onevision", implementation="native")
    inputs = one(processor)
    copied = deepcopy(model)
    before = model(**inputs).logits
    with torch.no_grad():
        for module in attention(copied):
            module.q_proj.weight.zero_()
            module.v_proj.weight.zero_()
    assert torch.equal(model(**inputs).logits, before)
    assert not torch.equal(copied(**inputs).logits, before)
    assert all(module.forward.__self__ is module for module in attention(copied))
    remove_dynimg(copied)
    assert torch.equal(model(**inputs).logits, before)


def test_a_shallow_replica_runs_its_own_weights():
    """nn.DataParallel copies a module's attributes, bound methods too, and gives it other parameters."""
    model, processor = patched("llava_onevision", implementation="native")
    inputs = one(processor)
    replica = attention(model)[0]._replicate_for_data_parallel()
    model.model.language_model.layers[0].self_attn = replica
    assert replica.forward.__self__ is not replica
    model(**inputs)
    assert replica.forward.__self__ is replica


def test_describe_names_what_runs():
    assert "native (C++)" in str(describe_dynimg(patched("llava", implementation="auto")[0]))
    assert "reference (PyTorch), as asked" in str(describe_dynimg(patched("llava", implementation="reference")[0]))
    assert describe_dynimg(patched("llava", DynImgConfig(rope_4d=False))[0]).implementation == "off"


def test_attention_that_other_code_replaced_keeps_the_pytorch_path():
    model, _ = build_tiny("llava")
    layer = attention(model)[1]
    theirs = MethodType(type(layer).forward, layer)
    layer.forward = theirs
    with pytest.raises(RuntimeError, match=r"'native' cannot run in this model: .*this instance was replaced"):
        apply_dynimg(model, implementation="native")
    assert "dynimg" not in model.model.__dict__, "nothing was changed"
    apply_dynimg(model)
    assert "replaced by other code" in describe_dynimg(model).implementation
    assert layer.__dict__["forward"] is theirs
    remove_dynimg(model)


def test_an_implementation_that_is_missing_or_unknown_is_refused_before_anything_changes():
    model, _ = build_tiny("llava")
    with pytest.raises(ValueError, match="allowed are auto, native, triton, reference"):
        apply_dynimg(model, implementation="cuda")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="'triton' is not there"):
            apply_dynimg(model, implementation="triton")
    assert not hasattr(model.model, "dynimg")


def test_another_implementation_needs_the_patch_to_be_taken_off_first():
    model, _ = patched("llava", implementation="native")
    with pytest.raises(ValueError, match=r"implementation='native'; call remove_dynimg"):
        apply_dynimg(model, implementation="reference")


def test_load_hands_the_implementation_on(tmp_path):
    model, _ = load(write_tiny("llava", tmp_path / "tiny"), implementation="reference")
    assert "as asked" in describe_dynimg(model).implementation


class Odd(nn.Module):
    def forward(self, x):
        return x


def test_layers_without_the_function_are_named():
    wrapper = rotary(patched("llava")[0])
    assert fusable([Odd()], wrapper) == ({}, "Odd calls no apply_rotary_pos_emb()")
    assert fusable([], wrapper) == ({}, "the language model has no layers")


def apply_rotary_pos_emb(q, k, cos, sin):
    return q * cos[:, None], k * sin[:, None]


class Strange(nn.Module):
    head_dim = 16

    def forward(self, q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin)


def test_a_function_that_does_something_else_is_not_replaced():
    assert "does not rotate q and k in a known way" in fusable([Strange()], rotary(patched("llava")[0]))[1]


def test_glm_rotates_interleaved_pairs_of_a_half_table():
    """The pairs are found by asking the layer's own function, for the tables do not tell."""
    from transformers import GlmConfig, GlmModel

    config = GlmConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, pad_token_id=0,
    )  # fmt: skip
    model = GlmModel(config).eval()
    wrapper = DynImgRotaryEmbedding(model.rotary_emb)
    found, why = fusable(model.layers, wrapper)
    assert not why
    assert list(found.values()) == [True]
    ids = torch.arange(6)[None]
    wrapper.theta_t.data.fill_(0.3)
    model.rotary_emb, wrapper.coordinates = wrapper, torch.arange(18.0).reshape(1, 6, 3)
    expected = model(ids).last_hidden_state
    for path, interleaved in found.items():
        fuse(model.layers.get_submodule(path), interleaved)
    wrapper.implementation = "native"
    torch.testing.assert_close(model(ids).last_hidden_state, expected, atol=1e-5, rtol=1e-4)


def test_plain_tables_go_to_the_layers_own_function():
    calls = []
    apply = operator(lambda *args, **kwargs: calls.append((args, kwargs)), False)
    q = torch.zeros(1)
    apply(q, q, q, q, unsqueeze_dim=2)
    assert calls == [((q, q, q, q), {"unsqueeze_dim": 2})]
