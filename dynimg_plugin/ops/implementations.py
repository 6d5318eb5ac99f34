"""Which implementation runs on which device, chosen by argument, checked on the device before its first use."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from dynimg_plugin.ops import library, reference
from dynimg_plugin.ops.native import MEND, load_native

Implementation = Literal["auto", "native", "triton", "reference"]
NAMES = {"native": library.NATIVE, "triton": library.TRITON}


def check_name(implementation: str) -> None:
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation={implementation!r}: allowed are {', '.join(get_args(Implementation))}")


def require(implementation: str) -> None:
    """Raise now what every choose() would raise: a demanded implementation that is there for no device at all."""
    check_name(implementation)
    if implementation in NAMES and all(missing(implementation, kind) for kind in ("cpu", "cuda")):
        choose(implementation, "cuda" if torch.cuda.is_available() else "cpu")


@torch.compiler.assume_constant_result
def choose(implementation: str, device: torch.device | str) -> str:
    """ "native", "triton" or "reference" for tensors on `device`.

    "auto" takes the first of native, triton, reference that is there.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a demanded implementation is not there, with the reason and the command that mends it.
    """
    check_name(implementation)
    kind = torch.device(device).type
    if implementation == "auto":
        return next((name for name in NAMES if not missing(name, kind)), "reference")
    if implementation != "reference" and (why := missing(implementation, kind)):
        mend = f" `{MEND}` compiles it;" if implementation == "native" and kind in ("cpu", "cuda") else ""
        raise RuntimeError(
            f"implementation={implementation!r} is not there for {kind} tensors: {why}."
            f"{mend} implementation='auto' takes what is there"
        )
    return implementation


def describe(implementation: str, device: torch.device | str) -> str:
    """One line for people: what runs, and why nothing faster."""
    kind = torch.device(device).type
    if implementation in NAMES and (why := missing(implementation, kind)):
        return f"{implementation}, which is missing for {kind}: {why}"
    name = choose(implementation, device)
    if name != "reference":
        return {"native": f"native ({'CUDA' if kind == 'cuda' else 'C++'})", "triton": "Triton"}[name]
    if implementation == "reference":
        return "reference (PyTorch), as asked"
    triton = f"; Triton: {missing('triton', kind)}" if kind == "cuda" else ""
    return f"reference (PyTorch); native: {missing('native', kind)}{triton}"


def missing(name: str, kind: str) -> str:
    """Why an implementation cannot serve a device type; empty when it can."""
    return (_native_missing if name == "native" else _triton_missing)(kind)


def _native_missing(kind: str) -> str:
    native = load_native()
    if native.stale:
        warnings.warn(f"the compiled 4D RoPE operator is not used: {native.why}. Mend: {MEND}", stacklevel=2)
    if kind not in native.devices:
        return native.why or f"it serves {', '.join(sorted(native.devices)) or 'no device'}"
    return _unverified("native", kind)


def _triton_missing(kind: str) -> str:
    if kind != "cuda":
        return "Triton needs a CUDA device"
    if find_spec("triton") is None:
        return "triton is not installed"
    return _unverified("triton", kind)


VERIFIED: dict[tuple[str, str], str] = {}  # "" or what was wrong; asked in every forward, so tried once per process


def _unverified(name: str, kind: str) -> str:
    """Run a small case, forward and backward, against the reference on the device itself, before the first use."""
    if kind == "cuda" and not torch.cuda.is_available():
        return "this torch sees no CUDA device"
    if (name, kind) not in VERIFIED:
        VERIFIED[name, kind] = _trial(name, kind)
    return VERIFIED[name, kind]


def _trial(name: str, kind: str) -> str:
    try:
        worst = _worst_error(name, kind)
    except Exception as error:  # no C compiler for Triton, no kernel for this GPU, ...: describe() tells
        return f"its first run on this device failed: {type(error).__name__}: {str(error)[:200]}"
    if worst >= 1e-4:
        return f"on this device it is off by {worst:.1e} from the reference; please report it"
    return ""


def _worst_error(name: str, kind: str) -> float:
    if name == "triton":
        import dynimg_plugin.ops.triton_kernels  # noqa: F401  (registers the operators)
    # the first use may be inside generate(), torch.export or a meta-device context
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
        results = [_small_case(f, kind) for f in (getattr(torch.ops, NAMES[name]).rope4d, reference.rope4d)]
        return max(((a - b).norm() / b.norm()).item() for a, b in zip(*results, strict=True))


def _small_case(rope4d: Callable[..., tuple[Tensor, Tensor]], kind: str) -> list[Tensor]:
    """Outputs and gradients of a batch with text tokens and visual ones."""
    plain: Any = {"generator": torch.Generator().manual_seed(0), "device": "cpu", "dtype": torch.float32}
    shapes = ((2, 4, 9, 32), (2, 2, 9, 32), (1, 9, 16), (1, 9, 16), (2, 9, 3), (3, 16))
    q, k, cos, sin, coordinates, theta = (torch.randn(shape, **plain).to(kind) for shape in shapes)
    coordinates[:, :4] = 0
    leaves = [x.requires_grad_() for x in (q, k, theta)]
    outputs = rope4d(q, k, cos, sin, coordinates, theta, False, False)
    loss = torch.cat([x.flatten() for x in outputs]).pow(3).sum()
    return [*outputs, *torch.autograd.grad(loss, leaves)]
