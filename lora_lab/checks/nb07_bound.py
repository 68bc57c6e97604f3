"""Check 7.3: how far from W* = W + s·BA a right merge may be, entry by entry.

|W' - W*| <= u·(|W*| + t) + (r + 3)·2⁻²⁴·(|W| + |s|·‖B_i‖·‖A_j‖),   u = eps/2 and t = tiny of the stored dtype.

Allowed is a quarter more. The least that passes counts r + 2 roundings, the first order, of Σ|B_ik||A_kj|.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.layer import LoRALinear
from lora_lab.merge_bound import exact_merge

from .compare import attempt
from .describe import dtype as name_of
from .describe import kind, shape
from .guard import Guard, Wrong
from .harness import Cases, exercise

LOOSE = 1.25  # times the bound of `lora_lab.merge_bound`


def _exact(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return W.double() + scale * (B.double() @ A.double())


def _library(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The library's bound for a merge into W's own dtype, fp64."""
    base = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    base.weight.data.copy_(W)
    A = A if scale > 0 else -A  # an alpha is positive
    layer = LoRALinear(base, len(A), abs(scale) * len(A), init=lambda *_: (A, B))
    return exact_merge(layer, base)[1]


def _least(W: Tensor, A: Tensor, B: Tensor, scale: float, kept: torch.dtype) -> Tensor:
    """What first-order analysis cannot do without, fp64."""
    sizes = W.double().abs() + abs(scale) * (B.double().abs() @ A.double().abs())
    u = _unit(kept)
    return u * (_exact(W, A, B, scale).abs() + torch.finfo(kept).tiny) + (len(A) + 2) * 2**-24 * sizes


def _merges(W: Tensor, A: Tensor, B: Tensor, scale: float) -> list[Tensor]:
    """Right merges: the same sum, in other orders."""
    wide = W.float()
    sums = [
        wide + scale * (B @ A),
        torch.addmm(wide, B, A, alpha=scale),
        wide + (scale * B) @ A,
        wide + B @ (scale * A),
        _exact(W, A, B, scale),
    ]
    one_by_one = wide.clone()
    for i in range(len(A)):
        one_by_one += scale * torch.outer(B[:, i], A[i])
    return [each.to(W.dtype) for each in [*sums, one_by_one]]


def _unit(kept: torch.dtype) -> float:
    return torch.finfo(kept).eps / 2


UNSAFE, WASTEFUL = "a right merge breaks it", "a wrong merge can hide in it"
SHORT = "a right merge may break it"
# What one would return by mistake, to name it. Each is f(W, A, B, scale, dtype).
KNOWN = (
    (
        "is too large: it is the right one, twice",
        lambda got, W, A, B, s, kept: _equal(got, 2 * _library(W, A, B, s)),
    ),
    (
        "is one number for every entry: a small weight could be wrong many times over, a large one is refused for its "
        "ordinary rounding. The bound of an entry grows with that entry",
        lambda got, *_: got.numel() > 1 and bool((got == got.flatten()[0]).all()),
    ),
    (
        "takes the size of W alone: what gets rounded is W* = W + s·BA, which can be far larger",
        lambda got, W, A, B, s, kept: _near(got, _unit(kept) * W.double().abs()),
    ),
    (
        "leaves out what float32 loses: where W and s·BA nearly cancel, W* is small, but the product and the sum were "
        "rounded at the size of W. Add e = (r + 3)·2⁻²⁴·(|W| + |s|·‖B_i‖·‖A_j‖)",
        lambda got, W, A, B, s, kept: _near(got, _unit(kept) * _exact(W, A, B, s).abs()),
    ),
    (
        "leaves out the rounding to the stored dtype, u·|W*|: in half precision it is by far the larger part",
        lambda got, W, A, B, s, kept: _near(got, _fp32_part(W, A, B, s)),
    ),
    (
        "rounds to float32 whatever the dtype: u is half of torch.finfo(dtype).eps",
        lambda got, W, A, B, s, kept: (
            kept != torch.float32
            and _near(got, _unit(torch.float32) * _exact(W, A, B, s).abs() + _fp32_part(W, A, B, s))
        ),
    ),
    (
        "leaves out u·t, t = torch.finfo(dtype).tiny: below t the numbers of a dtype lie equally far apart, and "
        "rounding costs up to u·t however small the entry is",
        lambda got, W, A, B, s, kept: _near(got, _unit(kept) * _exact(W, A, B, s).abs() + _fp32_part(W, A, B, s)),
    ),
    (
        "takes eps where half of it is enough: rounding to the nearest number moves by at most half of a step",
        lambda got, W, A, B, s, kept: _equal(
            got, 2 * _unit(kept) * (_exact(W, A, B, s).abs() + torch.finfo(kept).tiny) + _fp32_part(W, A, B, s)
        ),
    ),
    (
        "lets a negative scale make it smaller: sizes add up, so it is |s|·‖B_i‖·‖A_j‖",
        lambda got, W, A, B, s, kept: (
            s < 0
            and _equal(got, (_unit(kept) * _exact(W, A, B, s).abs() + _fp32_part(W, A, B, s, signed=True)).clamp_min(0))
        ),
    ),
    (
        "counts too few roundings in float32: r for the product, one for the scale, one for adding W, and one more for "
        "what those lose together",
        lambda got, W, A, B, s, kept: any(
            _equal(got, _unit(kept) * _exact(W, A, B, s).abs() + k / (len(A) + 3) * _fp32_part(W, A, B, s))
            for k in (1, len(A), len(A) + 1)
        ),
    ),
    (
        "leaves the scale out of W*: it is W + s·BA",
        lambda got, W, A, B, s, kept: _near(got, _unit(kept) * _exact(W, A, B, 1.0).abs() + _fp32_part(W, A, B, 1.0)),
    ),
)


def _fp32_part(W: Tensor, A: Tensor, B: Tensor, scale: float, signed: bool = False) -> Tensor:
    sizes = torch.outer(B.double().norm(dim=1), A.double().norm(dim=0))
    return (len(A) + 3) * _unit(torch.float32) * (W.double().abs() + (scale if signed else abs(scale)) * sizes)


def _equal(got: Tensor, want: Tensor) -> bool:
    return bool(((got - want).abs() <= 1e-3 * want.abs() + 1e-30).all())


def _near(got: Tensor, want: Tensor) -> bool:
    """Equal, or twice that (eps in place of eps/2), to three digits."""
    tiny = 1e-3 * want.abs() + 1e-30
    return any(bool(((got - times * want).abs() <= times * tiny).all()) for times in (1, 2))


def _named(got: Tensor, args: tuple, kept: torch.dtype) -> str:
    return next((says for says, fits in KNOWN if attempt(fits, got, *args, kept)), "")


def _read(got: Any, W: Tensor) -> Tensor:
    if not isinstance(got, Tensor) or got.shape != W.shape:
        what = f"not {kind(got)}" if not isinstance(got, Tensor) else f"not {shape(got)}"
        number = not isinstance(got, Tensor) or got.ndim == 0
        one = ": one number cannot fit large and small entries" if number else ""
        raise Wrong(f"your error_bound should return a bound for each entry, {shape(W)}, {what}{one}")
    if not got.is_floating_point() or got.dtype in (torch.bfloat16, torch.float16):
        raise Wrong(f"your error_bound is {name_of(got.dtype)}: a bound on rounding needs float32 or float64 itself")
    got = got.detach().double()
    if not got.isfinite().all() or (got < 0).any():
        raise Wrong("your error_bound holds a negative, infinite or NaN entry: is an abs() missing, |W*| or |s|?")
    return got


def _judge(answer: Guard, args: tuple, kept: torch.dtype) -> None:
    W = args[0]
    got, exact, tight = _read(answer(*args, kept), W), _exact(*args), _library(*args)
    least = _least(*args, kept)
    errors = torch.stack([(each.double() - exact).abs() for each in _merges(*args)]).amax(0)
    slack = 1e-6 * got + 1e-30
    broken, short, loose = errors > got + slack, got < least * (1 - 1e-6) - 1e-30, got > LOOSE * tight + slack
    if not (broken.any() or short.any() or loose.any()):
        return
    why = UNSAFE if broken.any() else SHORT if short.any() else WASTEFUL
    if says := _named(got, args, kept):
        raise Wrong(f"your error_bound {says} ({answer.case(*args, kept)}: {why})")
    ratio = errors / got.clamp_min(1e-30) if broken.any() else least / got if short.any() else got / tight
    spot = tuple((ratio == ratio.max()).nonzero()[0].tolist())
    if broken.any():
        end = f"the entry {list(spot)} of a right merge is off by {errors[spot]:.3g}, and your bound is {got[spot]:.3g}"
    elif short.any():
        end = f"at {list(spot)} it allows {got[spot]:.3g}, but roundings that all point one way reach {least[spot]:.3g}"
    else:
        end = f"at {list(spot)} it allows {got[spot]:.3g}, {ratio[spot]:.3g} times what rounding can do"
    size = "small" if broken.any() or short.any() else "large"
    raise Wrong(f"your error_bound is too {size} for {answer.case(*args, kept)}: {end}")


@exercise(
    "7.3",
    takes=("W", "A", "B", "scale", "dtype"),
    points=3,
    minutes=15,
    hints=(
        "Two things are lost: one rounding to the stored dtype, which no merge can avoid, and the roundings of the "
        "product and the sum in float32. Both depend on the entry.",
        "Form W* = W + s·BA in float64. u is half of torch.finfo(dtype).eps, t its tiny. "
        "‖B_i‖ is the length of row i of B, ‖A_j‖ "
        "that of column j of A; their outer product has the shape of W.",
        "u · (|W*| + t) + (r + 3) · 2**-24 · (|W| + |scale| · outer(row lengths of B, column lengths of A)), in "
        "double.",
    ),
)
def error_bound(answer: Guard, cases: Cases) -> str:
    """A bound that no right merge breaks and that few wrong ones meet."""
    full, half, fp16 = torch.float32, torch.bfloat16, torch.float16
    layers = ((full, False), (half, False), (full, True), (half, True), (fp16, False), (fp16, "tiny"))
    for number, (kept, cancel) in enumerate(layers, start=1):
        out, wide = cases.different(20, 40, 2)
        rank, scale = cases.integer(1, 8), cases.pick((0.3, 0.7, 2.5, 4.0)) * (1 if number % 2 else -1)
        A, B = cases.normal(rank, wide), cases.normal(out, rank) / rank**0.5
        W = cases.normal(out, wide)
        if cancel == "tiny":  # float16 has few exponents: these entries lie below its smallest normal number
            W, A, B = 2e-5 * W, 1e-3 * A, 1e-3 * B
        elif cancel:  # in every second row W and its update leave next to nothing
            W[::2] = -scale * (B @ A)[::2] * (1 + 1e-4 * cases.normal(*W[::2].shape))
        else:  # every second row lies far below its update
            W[::2] *= 10.0 ** cases.real(-3, -1)
        _judge(answer, (W.to(kept), A, B, scale), kept)
    return f"a bound that six right merges keep on {len(layers)} random layers in three dtypes, tight, with s < 0 too"
