"""Check 4.5: the parameter groups of LoRA+, A at the rate lr and B at ratio · lr (Hayou et al. 2024)."""

from typing import Any

import torch
from torch import nn

from .compare import number, same
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb03_toy import LowRank, Toy

SUFFIXES = ("q_proj", "v_proj", "mlp.0")


def _adapted(cases: Cases) -> tuple[Toy, dict[str, LowRank]]:
    """A toy model, frozen, some of its linear layers wrapped."""
    model = Toy(cases)
    model.requires_grad_(False)
    layers = {}
    for name, linear in model.linears().items():
        if name.split(".", 2)[-1].removeprefix("attn.") in SUFFIXES:
            layers[name] = LowRank(linear, cases.integer(2, 3), cases.integer(5, 8))
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layers[name])
    return model, layers


def _read(got: Any) -> list[dict]:
    if not isinstance(got, list | tuple) or not got or not all(isinstance(group, dict) for group in got):
        raise Wrong(f"your lora_plus_groups should return a list of dicts, one for each group, not {kind(got)}")
    groups = [dict(group) for group in got]
    for group in groups:
        if missing := {"params", "lr"} - set(group):
            raise Wrong(f"a group of your lora_plus_groups has no {min(missing)!r}: torch.optim needs params and lr")
        params = group["params"]
        group["params"] = [params] if isinstance(params, torch.Tensor) else list(params)
        if strange := [p for p in group["params"] if not isinstance(p, nn.Parameter)]:
            raise Wrong(f"the params of a group hold {kind(strange[0])}: the layers' own parameters are needed")
    return [group for group in groups if group["params"]]


def _compare(groups: list[dict], model: nn.Module, layers: dict[str, LowRank], lr: float, ratio: float) -> None:
    rates: dict[int, float] = {}
    for group in groups:
        for parameter in group["params"]:
            if id(parameter) in rates:
                raise Wrong("a parameter stands in two groups: an optimizer refuses that")
            rates[id(parameter)] = number(group["lr"], "the lr of a group")
    mine = {id(p): f"{name}.{f}" for name, layer in layers.items() for f, p in (("A", layer.A), ("B", layer.B))}
    known = {id(p): name for name, p in model.named_parameters()}
    if extra := [known.get(p, "a tensor that is not in the model") for p in rates if p not in mine]:
        raise Wrong(f"the groups hold {len(extra)} tensors that are no factor of a LoRA layer, such as {extra[0]}")
    if missing := [name for p, name in mine.items() if p not in rates]:
        raise Wrong(
            f"{len(missing)} of {len(mine)} factors are in no group, such as {missing[0]}: they would not train"
        )
    A = {rates[id(layer.A)] for layer in layers.values()}
    B = {rates[id(layer.B)] for layer in layers.values()}
    for name, found in (("A", A), ("B", B)):
        if len(found) > 1:
            raise Wrong(
                f"the factors {name} have different rates: {', '.join(f'{rate:.4g}' for rate in sorted(found))}"
            )
    _name_the_mistake(A.pop(), B.pop(), lr, ratio)


def _name_the_mistake(A: float, B: float, lr: float, ratio: float) -> None:
    want = (lr, ratio * lr)
    if same(A / lr, 1.0) and same(B / lr, ratio):
        return
    given = f"with lr = {lr:g} and ratio = {ratio:g} yours are {A:.4g} for A and {B:.4g} for B"
    for says, pair in (
        ("give A the larger rate: in LoRA+ it is B that learns faster", (ratio * lr, lr)),
        ("slow A down instead of speeding B up: A keeps the rate lr", (lr / ratio, lr)),
        ("give both the same rate: B's is ratio times as large", (lr, lr)),
        ("give both the larger rate: A keeps lr", (ratio * lr, ratio * lr)),
        ("take the ratio for the rate of B: it is a factor on lr", (lr, ratio)),
        ("divide by the ratio: B's rate is ratio · lr", (lr, lr / ratio)),
        ("add the ratio: it is a factor on lr", (lr, lr + ratio)),
        ("split the ratio between the factors: A keeps lr", (lr / ratio**0.5, lr * ratio**0.5)),
    ):
        if same(A / lr, pair[0] / lr) and same(B / lr, pair[1] / lr):
            raise Wrong(f"your lora_plus_groups {says} ({given})")
    raise Wrong(f"the rates are off: {given}, where {want[0]:.4g} and {want[1]:.4g} are right")


@exercise(
    "4.5",
    takes=("model", "lr", "ratio"),
    points=2,
    minutes=10,
    hints=(
        "torch.optim takes a list of dicts in place of a list of parameters. Each dict has its own params and lr.",
        "Go through model.modules(). A module that has an A and a B is a LoRA layer; collect its two factors in two "
        "lists. Everything else is frozen and stays out.",
        'Return [{"params": all the A, "lr": lr}, {"params": all the B, "lr": ratio * lr}].',
    ),
)
def lora_plus_groups(answer: Guard, cases: Cases) -> str:
    """Two groups: A at lr, B at ratio · lr."""
    for ratio in (cases.pick((4.0, 16.0)), cases.real(2, 9), 0.5):
        model, layers = _adapted(cases)
        lr = cases.pick((1e-3, 3e-3, 2e-2))
        groups = _read(answer(model, lr, round(ratio, 2)))
        _compare(groups, model, layers, lr, round(ratio, 2))
        torch.optim.AdamW(groups)  # raises for whatever it does not take
    return f"two groups, {len(layers)} factors A at lr and {len(layers)} factors B at ratio · lr"
