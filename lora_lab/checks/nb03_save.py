"""Checks 3.7 and 3.8: folding the update into W, and the adapter alone under PEFT's names."""

from typing import Any

import torch
from torch import Tensor, nn

from lora_lab.layer import LoRALinear

from .compare import Mistake, attempt, judge, same, tensor
from .describe import dtype, kind, short
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb03_toy import LowRank, Toy


def right_merge(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """W + s·BA, summed in fp32, rounded once."""
    return (W.float() + scale * (B.float() @ A.float())).to(W.dtype)


MERGE_MISTAKES = (
    Mistake(
        "leaves out the scale: B A counts {scale:.4g} times here", lambda W, A, B, scale: right_merge(W, A, B, 1.0)
    ),
    Mistake("applies the scale twice", lambda W, A, B, scale: right_merge(W, A, B, scale**2)),
    Mistake("divides by the scale: multiply B A by it", lambda W, A, B, scale: right_merge(W, A, B, 1 / scale)),
    Mistake(
        "scales W too: only B A is multiplied by {scale:.4g}", lambda W, A, B, scale: scale * right_merge(W, A, B, 1.0)
    ),
    Mistake("adds the update twice: merging is one addition", lambda W, A, B, scale: right_merge(W, A, B, 2 * scale)),
    Mistake("subtracts the update: that is unmerging", lambda W, A, B, scale: right_merge(W, A, B, -scale)),
    Mistake("returned the update alone: add W", lambda W, A, B, scale: right_merge(0 * W, A, B, scale)),
    Mistake("returned W unchanged", lambda W, A, B, scale: W),
    Mistake(
        "multiplies in the wrong order: the update is B A, (out, rank) times (rank, in)",
        lambda W, A, B, scale: right_merge(W, B, A, scale),
    ),
    Mistake(
        "transposes the update: B A is (out, in), as W is",
        lambda W, A, B, scale: right_merge(W, B.T, A.T, scale),
    ),
    Mistake(
        "transposes a factor: B A needs no transpose, (out, rank) times (rank, in)",
        lambda W, A, B, scale: right_merge(W, A.T, B.T, scale),
    ),
)
# In half precision the order of rounding shows: what the sum looks like if something is rounded too early.
EARLY = (
    (
        "adds in {0}: the update is rounded, then the sum again. Take W to float32, add there, round once",
        lambda W, A, B, scale: W + (scale * (B @ A)).to(W.dtype),
    ),
    (
        "rounds B A to {0} before it is scaled and added: stay in float32 until the end",
        lambda W, A, B, scale: W + scale * (B @ A).to(W.dtype),
    ),
    (
        "rounds B A to {0} before it is added: stay in float32 until the end",
        lambda W, A, B, scale: (W.float() + scale * (B @ A).to(W.dtype).float()).to(W.dtype),
    ),
    (
        "rounds the factors to {0} before multiplying: take W to float32 instead",
        lambda W, A, B, scale: W + scale * (B.to(W.dtype) @ A.to(W.dtype)),
    ),
    (
        "rounds the factors to {0} before multiplying: take W to float32 instead",
        lambda W, A, B, scale: right_merge(W, A.to(W.dtype), B.to(W.dtype), scale),
    ),
)


def _agreement(got: Tensor, want: Tensor) -> float:
    return float((got == want).double().mean())


def _refuse_early_rounding(got: Tensor, args: tuple) -> None:
    """Wrong unless a half-precision result is the fp32 sum rounded once, but for a rare tie."""
    want = right_merge(*args)
    if _agreement(got, want) > 0.99:
        return
    kept = dtype(got.dtype)
    found = next((says for says, does in EARLY if _agreement(got, attempt(does, *args)) > 0.99), "")
    said = found.format(kept) if found else f"is not the float32 sum rounded once to {kept}"
    off = 100 * (1 - _agreement(got, want))
    raise Wrong(f"your merge_weight {said} ({off:.0f} % of {got.numel()} entries are off by a rounding)")


@exercise(
    "3.7",
    takes=("W", "A", "B", "scale"),
    points=2,
    minutes=8,
    hints=(
        "y = W x + s·B(A x) is one matrix times x. Which matrix? And how precise is the type that W is stored in?",
        "W + s·B A, with W.float() and float32 factors: add in float32, only then go back to W.dtype. No += on W.",
        "wide = W in float32, plus scale · (B times A); return wide in W's dtype. W itself is not assigned to.",
    ),
)
def merge_weight(answer: Guard, cases: Cases) -> str:
    """W + s·BA in fp32, dtype of W, W untouched."""
    side = cases.integer(4, 7)
    sizes = [(side, side, side)] + [(*cases.different(5, 16, 2), cases.integer(2, 4)) for _ in range(3)]
    sizes += [(*cases.different(4, 9, 2), 1)] + [(*cases.different(40, 60, 2), 8)] * 2
    inputs = []
    for number, (out, wide, rank) in enumerate(sizes):
        kept = {5: torch.bfloat16, 6: torch.float16}.get(number, torch.float32)
        factors = cases.normal(rank, wide), cases.normal(out, rank) / rank**0.5
        inputs.append((cases.normal(out, wide, dtype=kept), *factors, cases.pick((0.3, 0.6, 1.7, 2.3))))
    count = judge(
        answer,
        inputs,
        right_merge,
        MERGE_MISTAKES,
        look="compare x @ merged.T with the layer's own output",
        read=lambda got, want: tensor(got, tuple(want.shape), want.dtype, "the result of your merge_weight"),
    )
    for args in inputs[5:]:
        _refuse_early_rounding(answer(*args).detach(), args)
    return f"W + s·BA on {count} random shapes in three dtypes, W untouched"


PREFIX = "base_model.model."
# A wrong key for (path, letter), and what is wrong about it.
KEYS = (
    ("the prefix base_model.model. is missing", "{path}.lora_{letter}.weight"),
    ("the prefix is base_model.model., in full", "model.{path}.lora_{letter}.weight"),
    ("the prefix is base_model.model., in full", "base_model.{path}.lora_{letter}.weight"),
    ("the prefix is base_model.model., in full", "base_model_model.{path}.lora_{letter}.weight"),
    ("PEFT calls the factors lora_A.weight and lora_B.weight", PREFIX + "{path}.{letter}"),
    ("PEFT calls the factors lora_A.weight and lora_B.weight", PREFIX + "{path}.{letter}.weight"),
    (".weight is missing at the end", PREFIX + "{path}.lora_{letter}"),
    ("the prefix and PEFT's names are missing", "{path}.{letter}"),
    ("the adapter's name (default) is not in PEFT's files", PREFIX + "{path}.lora_{letter}.default.weight"),
    ("lora_A and lora_B have a capital letter", PREFIX + "{path}.lora_{lower}.weight"),
    ("the path is the wrapper's, without .base", PREFIX + "{path}.base.lora_{letter}.weight"),
    ("only the last part of the path is there", PREFIX + "{last}.lora_{letter}.weight"),
)


def _keys(paths: list[str], pattern: str) -> set[str]:
    return {
        pattern.format(path=path, letter=letter, lower=letter.lower(), last=path.rpartition(".")[2])
        for path in paths
        for letter in "AB"
    }


def _refuse_keys(state: dict, paths: list[str]) -> None:
    want, got = _keys(paths, PREFIX + "{path}.lora_{letter}.weight"), set(state)
    if got == want:
        return
    example = min(want)
    if said := next((says for says, pattern in KEYS if got == _keys(paths, pattern)), ""):
        raise Wrong(f"your adapter_state has keys such as {min(got)!r} where PEFT has {example!r}: {said}")
    if got > want:
        extra = min(got - want)
        raise Wrong(f"your adapter_state holds {extra!r} too: an adapter is A and B of every LoRA layer, nothing else")
    if got < want:
        raise Wrong(f"your adapter_state lacks {min(want - got)!r}: A and B of every LoRA layer belong to it")
    raise Wrong(f"your adapter_state has the key {short(min(got - want, key=str))}, where PEFT has {example!r}")


def _refuse_value(key: str, got: Any, factor: Tensor, other: Tensor, scale: float) -> None:
    if isinstance(got, Tensor) and same(got, other):
        raise Wrong(f"your adapter_state has A and B swapped: {key} holds the other factor")
    values = tensor(got, tuple(factor.shape), factor.dtype, f"your adapter_state's {key}")
    if same(values, scale * factor):
        raise Wrong(f"your adapter_state has the scale in {key}: save the factor as it is, alpha is saved beside it")
    if not same(values, factor):
        raise Wrong(f"your adapter_state has other numbers than the layer in {key}")
    if got.requires_grad:
        raise Wrong(f"your adapter_state returns a tensor that still trains ({key}): detach it")


def _model(cases: Cases, layer_class: type) -> tuple[Toy, dict[str, nn.Module], float]:
    """A toy model with three adapted layers, one of them at the root, factors random and everything else frozen."""
    model = Toy(cases).requires_grad_(False)
    rank, alpha = cases.different(2, 7, 2)
    layers = {}
    for path in ("blocks.0.attn.q_proj", "blocks.1.mlp.2", "head"):
        parent, _, name = path.rpartition(".")
        layers[path] = layer_class(model.get_submodule(path), rank, alpha)
        setattr(model.get_submodule(parent), name, layers[path])
    with torch.no_grad():
        for layer in layers.values():
            layer.A.copy_(cases.normal(*layer.A.shape))
            layer.B.copy_(cases.normal(*layer.B.shape))
    return model, layers, alpha / rank


def _state(answer: Guard, cases: Cases, layer_class: type) -> tuple[dict, dict[str, nn.Module], float]:
    """The learner's state of a model, the model's LoRA layers by path, and their scale."""
    model, layers, scale = _model(cases, layer_class)
    state = answer(model)
    if not isinstance(state, dict):
        raise Wrong(f"your adapter_state should return a dict of tensors, not {kind(state)}")
    if not state:
        raise Wrong(
            f"your adapter_state found no LoRA layer in a model with three, of the class {layer_class.__name__}: look "
            "for modules that have an A and a B, whatever their class"
        )
    return state, layers, scale


def _refuse_alias(state: dict[str, Tensor], layers: dict[str, nn.Module]) -> None:
    for path, layer in layers.items():
        for letter in "AB":
            key = f"{PREFIX}{path}.lora_{letter}.weight"
            before = state[key].clone()
            with torch.no_grad():
                getattr(layer, letter).add_(1.0)
            if not torch.equal(state[key], before):
                raise Wrong(
                    f"your adapter_state returns the layer's own memory ({key}): training on would change what was "
                    "saved, so clone it"
                )


@exercise(
    "3.8",
    takes=("model",),
    points=2,
    minutes=10,
    hints=(
        "An adapter file holds two small tensors for each adapted layer. Where are they, and what does PEFT call them?",
        "Walk over named_modules() and keep any module with an A and a B, as in 3.6. PEFT's key is base_model.model. + "
        "the path + .lora_A.weight. A value that training goes on to change is not saved.",
        "For each path and layer: state[prefix + path + '.lora_A.weight'] is layer.A, detached and cloned; B likewise.",
    ),
)
def adapter_state(answer: Guard, cases: Cases) -> str:
    """A and B under PEFT's keys."""
    classes = (LoRALinear, LowRank, LoRALinear)  # the second cannot be found by isinstance
    for layer_class in classes:
        state, layers, scale = _state(answer, cases, layer_class)
        _refuse_keys(state, list(layers))
        for path, layer in layers.items():
            pair = {"A": layer.A.detach(), "B": layer.B.detach()}
            for letter, other in (("A", "B"), ("B", "A")):
                _refuse_value(
                    f"{PREFIX}{path}.lora_{letter}.weight",
                    state[f"{PREFIX}{path}.lora_{letter}.weight"],
                    pair[letter],
                    pair[other],
                    scale,
                )
        _refuse_alias(state, layers)
    return f"A and B of {len(classes)} models under PEFT's keys"
