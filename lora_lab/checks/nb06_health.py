"""Checks 6.4 and 6.5: what trains in a PEFT model, and how large the gradients of A and of B are."""

import math
from typing import Any

from torch import Tensor, nn

from .compare import Mistake, Trial, number
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise

# Base layers whose names look like LoRA, and are not: an adapter's parameter has lora_A or lora_B as one whole part.
SOUNDS = "a base layer that only sounds like LoRA: compare whole parts of the name"
LOOKALIKE = ("lora_router", "explora_proj", "lora_A_gate")


class Adapted(nn.Module):
    """Named as PEFT names its parts: base_layer, lora_A.default, lora_B.default. Made without a forward pass."""

    def __init__(self, cases: Cases) -> None:
        super().__init__()
        rank = cases.integer(2, 4)
        for block in range(2):
            layer = nn.Module()
            for name in ("q_proj", "up_proj"):
                out, wide = cases.different(5, 12, 2)
                site = nn.Module()
                site.base_layer = nn.Linear(wide, out)
                site.lora_A = nn.ModuleDict({"default": nn.Linear(wide, rank, bias=False)})
                site.lora_B = nn.ModuleDict({"default": nn.Linear(rank, out, bias=False)})
                layer.add_module(name, site)
            layer.add_module(LOOKALIKE[block], nn.Linear(6, 4))
            layer.norm = nn.LayerNorm(6)
            self.add_module(f"block{block}", layer)
        self.add_module(LOOKALIKE[2], nn.Linear(4, 3))
        for name, parameter in self.named_parameters():
            parameter.data = cases.normal(*parameter.shape)
            parameter.requires_grad_(part(name) is not None)


def part(name: str) -> str | None:
    """'A' or 'B' for a parameter of an adapter, None for one of the base."""
    pieces = name.split(".")
    return "A" if "lora_A" in pieces else "B" if "lora_B" in pieces else None


def problems(model: nn.Module) -> tuple[set[str], set[str]]:
    """(base parameters that train, adapter parameters that do not)."""
    named = dict(model.named_parameters())
    return (
        {n for n, p in named.items() if part(n) is None and p.requires_grad},
        {n for n, p in named.items() if part(n) is not None and not p.requires_grad},
    )


def _names(got: Any, which: str, known: set[str]) -> set[str]:
    if isinstance(got, str) or not isinstance(got, list | tuple | set | frozenset):
        raise Wrong(f"your freeze_check should return {which} as a list of parameter names, not {kind(got)}")
    for name in got:
        if name not in known:
            raise Wrong(f"your freeze_check names {name!r}, which is no parameter: take names from named_parameters()")
    return set(got)


@exercise(
    "6.4",
    takes=("model",),
    points=2,
    minutes=10,
    hints=(
        "Two things can go wrong: a base weight trains, or a factor of the adapter does not.",
        "Split each name at its dots. It is the adapter's if one of the parts is lora_A or lora_B, as a whole.",
        "adapter = {'lora_A', 'lora_B'} & set(name.split('.')); collect the names where requires_grad is not what it "
        "should be.",
    ),
)
def freeze_check(answer: Guard, cases: Cases) -> str:
    """(names that train and should not, names that should train and do not)."""
    flips: list[tuple[str, str]] = [
        ("", "in a model where all is well"),
        ("block0.q_proj.base_layer.weight", "a base weight that trains"),
        ("block1.up_proj.base_layer.bias", "a base bias that trains"),
        ("block0.norm.weight", "a norm that trains"),
        (f"block0.{LOOKALIKE[0]}.weight", SOUNDS),
        (f"block1.{LOOKALIKE[1]}.weight", SOUNDS),
        (f"{LOOKALIKE[2]}.weight", SOUNDS),
        ("block0.q_proj.lora_A.default.weight", "a factor A that does not train"),
        ("block1.up_proj.lora_B.default.weight", "a factor B that does not train"),
        ("everything frozen", "a model in which nothing trains"),
        ("everything trains", "a model in which everything trains"),
    ]
    for flip, says in flips:
        model = Adapted(cases)
        for name, parameter in model.named_parameters():
            if flip in (name, "everything frozen", "everything trains"):
                parameter.requires_grad_(
                    {"everything frozen": False, "everything trains": True}.get(flip, not parameter.requires_grad)
                )
        known = {name for name, _ in model.named_parameters()}
        got = answer(model)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"your freeze_check should return two lists, not {kind(got)}")
        found = _names(got[0], "the first part", known), _names(got[1], "the second part", known)
        want = problems(model)
        if found == want:
            continue
        if found == want[::-1]:
            raise Wrong("your freeze_check swaps the two lists: first what trains and should not")
        for mine, right, which in zip(found, want, ("train and should not", "should train and do not"), strict=True):
            if missed := right - mine:
                raise Wrong(f"your freeze_check misses {min(missed)} among the names that {which}: {says}")
            if extra := mine - right:
                sounds = any(word in min(extra) for word in LOOKALIKE)
                raise Wrong(
                    f"your freeze_check lists {min(extra)} among the names that {which}: {SOUNDS if sounds else says}"
                )
    return f"{len(flips) - 1} broken models found out, the sound one let through"


def _collected(model: nn.Module, letter: str) -> list[Tensor]:
    return [p.grad for n, p in model.named_parameters() if part(n) == letter and p.grad is not None]


def _by(measure) -> Any:
    return lambda model: tuple(measure(_collected(model, letter)) for letter in "AB")


def _total(grads: list[Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in grads))


def reference(model: nn.Module) -> tuple[float, float]:
    """√ of the sum of all squared entries, over all A and over all B."""
    return _total(_collected(model, "A")), _total(_collected(model, "B"))


def _weights(model: nn.Module) -> tuple[float, float]:
    a, b = ([p.detach() for n, p in model.named_parameters() if part(n) == letter] for letter in "AB")
    return _total(a), _total(b)


def _with_base(model: nn.Module) -> tuple[float, float]:
    base = [p.grad for n, p in model.named_parameters() if part(n) is None and p.grad is not None]
    return _total(_collected(model, "A") + base), _total(_collected(model, "B") + base)


NORM_MISTAKES = (
    Mistake("swaps A and B", lambda model: reference(model)[::-1]),
    Mistake(
        "adds the norms of the tensors: lengths add up in squares, √(Σ‖g‖²)",
        _by(lambda grads: sum(float(g.norm()) for g in grads)),
    ),
    Mistake("forgets the square root", _by(lambda grads: _total(grads) ** 2)),
    Mistake(
        "takes the mean over the tensors: the norm of all of them together is asked for",
        _by(lambda grads: sum(float(g.norm()) for g in grads) / max(1, len(grads))),
    ),
    Mistake(
        "takes the largest norm of a tensor: the norm of all of them together is asked for",
        _by(lambda grads: max((float(g.norm()) for g in grads), default=0.0)),
    ),
    Mistake("measures the weights: take p.grad", _weights),
    Mistake("counts gradients of the base: only lora_A and lora_B are asked for", _with_base),
    Mistake(
        "gives the norm of both together to each",
        lambda model: (math.hypot(*reference(model)),) * 2,
    ),
    Mistake(
        "looks at the last tensor only: is something overwritten in the loop?",
        _by(lambda grads: float(grads[-1].norm()) if grads else 0.0),
    ),
    Mistake(
        "divides by the number of entries: that is a root mean square, not a norm",
        _by(lambda grads: _total(grads) / math.sqrt(max(1, sum(g.numel() for g in grads)))),
    ),
    Mistake("sums sizes, |g|, not squares", _by(lambda grads: sum(float(g.abs().sum()) for g in grads))),
)


@exercise(
    "6.5",
    takes=("model",),
    points=2,
    minutes=8,
    hints=(
        "All entries of all A form one long vector. Its length is asked for, and the same for B.",
        "Add up the squares of the entries of p.grad; skip parameters whose grad is None; take the root at the end.",
        "total = {'A': 0.0, 'B': 0.0}; for each named parameter with a gradient, add p.grad.norm() ** 2 to the letter "
        "of lora_A or lora_B; return the two roots.",
    ),
)
def gradient_norms(answer: Guard, cases: Cases) -> str:
    """{"A": norm, "B": norm} of the gradients."""
    trial = Trial(
        "your gradient_norms", ("model",), NORM_MISTAKES, "√ of the sum of squares over all A, and over all B"
    )
    for scene in range(6):
        model = Adapted(cases)
        for name, parameter in model.named_parameters():
            letter = part(name)
            if scene == 1 and letter == "A":
                parameter.grad = parameter.new_zeros(parameter.shape)  # the first step of training: B = 0
            elif (letter or scene == 2) and not (scene == 3 and "block0" in name):
                parameter.grad = cases.normal(*parameter.shape) * cases.real(0.5, 3)
        got = answer(model)
        if not isinstance(got, dict) or set(got) != {"A", "B"}:
            raise Wrong(f"your gradient_norms should return a dictionary with the keys 'A' and 'B', not {kind(got)}")
        pair = tuple(number(got[letter], f"your gradient_norms' {letter!r}") for letter in "AB")
        trial.add((model,), pair, reference(model))
    trial.verdict()
    return f"{len(trial.passes)} models, with missing and with zero gradients among them"
