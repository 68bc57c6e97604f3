"""Checks 7.1 and 7.2: every adapter folded into a copy of the model, and one update taken out again.

W' = W + s·BA, summed in fp32, rounded once.   W (out, in); A (rank, in); B (out, rank).
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.inject import lora_layers

from .compare import Mistake, judge, tensor
from .describe import dtype, kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb07_toy import adapted, exact, plain


def _off(got: Tensor, want: Tensor) -> float:
    """The largest difference, in units of the rounding that `want` has anyway."""
    gap = (got.double() - want.double()).abs()
    unit = torch.finfo(got.dtype).eps * want.double().abs() + 8 * torch.finfo(torch.float32).eps
    return float((gap / unit).nan_to_num(nan=float("inf")).max())


# How many times s·BA the weight then holds, by what was done.
TIMES = (
    (0, "holds W alone: the adapter is gone without having been added"),
    (2, "holds the update twice: was a layer merged and then merged again?"),
    (-1, "holds W - s·BA: the update is added"),
)


def _weight_fault(path: str, got: Tensor, layer: nn.Module) -> str:
    """What is wrong with a merged weight, in words; "" if nothing is."""
    want, kept = exact(layer), got.dtype
    if kept != torch.float32:
        update = (layer.scale * (layer.B @ layer.A)).to(kept)
        early = float((got == layer.base.weight + update).double().mean())
        right = float((got == want.to(kept)).double().mean())
        if early > 0.98 > right:
            off = f"{100 * (1 - right):.0f} % of the entries of {path} are off by a rounding"
            return f"adds in {dtype(kept)}: take W to float32, add there, and round once ({off})"
    if _off(got, want) <= 1:
        return ""
    for times, says in TIMES:
        if _off(got, exact(layer, times)) <= 2:
            return f"{path} {says}"
    for times, says in ((1 / layer.scale, "leaves out the scale"), (layer.scale, "applies the scale twice")):
        if _off(got, exact(layer, times)) <= 2:
            return f"{path} {says}: s is {layer.scale:.3g} here"
    gap = (got.double() - want).abs().max()
    return f"{path} is off by {float(gap):.3g}, where rounding allows {torch.finfo(got.dtype).eps:.1g} of an entry"


def _refuse(model: nn.Module, got: Any, layers: dict[str, nn.Module]) -> None:
    if not isinstance(got, nn.Module):
        raise Wrong(f"your merge should return a model, not {kind(got)}")
    if got is model:
        raise Wrong("your merge returns the model it was given: return a copy, and leave the model as it is")
    if left := list(lora_layers(got)):
        raise Wrong(f"your merge leaves {len(left)} of {len(layers)} LoRA layers in the copy ({left[0]}, ...)")
    want, given = plain(model).state_dict(), got.state_dict()
    if set(want) != set(given):
        name = min(set(want) ^ set(given))
        raise Wrong(f"your merge changes the names of the model's tensors: {name} is in one of the two only")
    own = {p.data_ptr(): name for name, p in [*model.named_parameters(), *model.named_buffers()]}
    for name, value in given.items():
        if value.data_ptr() in own:
            raise Wrong(f"your merge shares {name} with the model: changing one would change both. Copy it")
        if value.dtype != want[name].dtype:
            raise Wrong(
                f"{name} is {dtype(value.dtype)}, but {dtype(want[name].dtype)} is expected: the dtype got lost"
            )
        path = name.removesuffix(".weight")
        if path in layers:
            if value.shape != want[name].shape:
                raise Wrong(f"{name} has the shape {tuple(value.shape)}, but {tuple(want[name].shape)} is expected")
            if fault := _weight_fault(path, value, layers[path]):
                raise Wrong(f"your merge {fault}" if fault.startswith("adds") else f"in your merge {fault}")
        elif not torch.equal(value, want[name]):
            raise Wrong(f"your merge changes {name}, which no adapter touches")
    trains = [name for name, parameter in got.named_parameters() if parameter.requires_grad]
    if trains:
        raise Wrong(f"your merge returns a model that still trains ({trains[0]}): a weight got a gradient on the way")


@exercise(
    "7.1",
    takes=("model",),
    points=2,
    minutes=12,
    hints=(
        "Two jobs: each base weight gets its update, and each wrapper gives its place back to its base. In a copy.",
        "copy.deepcopy(model) first. Then for path, layer in lora_layers(copy).items(): write into layer.base.weight "
        "under torch.no_grad(), and put layer.base where the layer was.",
        "wide = W.float() + scale · (B @ A); layer.base.weight.copy_(wide); parent, _, name = path.rpartition('.'); "
        "setattr(copy.get_submodule(parent), name, layer.base).",
    ),
)
def merge(answer: Guard, cases: Cases) -> str:
    """A plain copy with every adapter folded in."""
    dtypes = (torch.float32, torch.float32, torch.bfloat16, torch.float16)
    for each in dtypes:
        model = adapted(cases, each)
        _refuse(model, answer(model), lora_layers(model))
    return f"four adapters folded into copies of {len(dtypes)} models in three dtypes, the originals untouched"


def right_unmerge(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """W' - s·BA, in fp32, rounded once."""
    return (W.float() - scale * (B.float() @ A.float())).to(W.dtype)


UNMERGE_MISTAKES = (
    Mistake("adds the update once more: that is a double merge", lambda W, A, B, scale: right_unmerge(W, A, B, -scale)),
    Mistake("leaves out the scale, {scale:.4g} here", lambda W, A, B, scale: right_unmerge(W, A, B, 1.0)),
    Mistake("applies the scale twice", lambda W, A, B, scale: right_unmerge(W, A, B, scale**2)),
    Mistake("divides by the scale", lambda W, A, B, scale: right_unmerge(W, A, B, 1 / scale)),
    Mistake("scales W' too", lambda W, A, B, scale: scale * right_unmerge(W, A, B, 1.0)),
    Mistake("returned the merged weight unchanged", lambda W, A, B, scale: W),
    Mistake("takes the update out twice", lambda W, A, B, scale: right_unmerge(W, A, B, 2 * scale)),
    Mistake("multiplies A B: the update is B A", lambda W, A, B, scale: right_unmerge(W, B, A, scale)),
    Mistake("transposes the update", lambda W, A, B, scale: right_unmerge(W, B.T, A.T, scale)),
)


@exercise(
    "7.2",
    takes=("W_merged", "A", "B", "scale"),
    points=1,
    minutes=5,
    hints=(
        "Which number did the merge add to each entry? A and B are still there: nothing about it was lost.",
        "Form s·B A exactly as the merge did, in float32, and take it away from W_merged.float().",
        "wide = W_merged in float32, minus scale · (B times A); return wide in W_merged's dtype.",
    ),
)
def unmerge_weight(answer: Guard, cases: Cases) -> str:
    """W' - s·BA in fp32, rounded once to the dtype of W'."""
    side = cases.integer(4, 7)
    sizes = [(side, side, side)] + [(*cases.different(5, 16, 2), cases.integer(1, 4)) for _ in range(3)]
    sizes += [(*cases.different(40, 60, 2), 8)] * 2
    inputs = []
    for number, (out, wide, rank) in enumerate(sizes):
        kept = {4: torch.bfloat16, 5: torch.float16}.get(number, torch.float32)
        factors = cases.normal(rank, wide), cases.normal(out, rank) / rank**0.5
        inputs.append((cases.normal(out, wide, dtype=kept), *factors, cases.pick((0.3, 0.6, 1.7, 2.3))))
    labels = {"W": "W_merged"}
    count = judge(
        answer,
        inputs,
        right_unmerge,
        UNMERGE_MISTAKES,
        look="merging and unmerging must give W back to rounding",
        read=lambda got, want: tensor(got, tuple(want.shape), want.dtype, f"your unmerged {labels['W']}"),
    )
    for args in inputs[4:]:
        right = (answer(*args).detach() == right_unmerge(*args)).double().mean()
        if right < 0.98:
            kept = dtype(args[0].dtype)
            off = f"{100 * (1 - right):.0f} % of the entries are off by a rounding"
            raise Wrong(f"your unmerge_weight subtracts in {kept}: go to float32, subtract, round once ({off})")
    return f"the update taken out again on {count} random shapes in three dtypes"
