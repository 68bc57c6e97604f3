"""Check 3.4: a LoRA layer. A frozen nn.Linear inside, two fp32 factors beside it, the base's dtype at the end."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .compare import Mistake, Trial, number, same, tensor
from .describe import change, describe, dtype, kind, shape, snapshot
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb03_init import refuse_distribution
from .nb03_maths import plain

NAME = "your MyLoRALinear"


def _forward(x: Tensor, base: nn.Linear, A: Tensor, B: Tensor, scale: float, bias: float = 1.0, base_part: float = 1.0):
    """base_part · x Wᵀ + bias · b + scale · (x Aᵀ) Bᵀ in fp32 or better."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, W = x.to(wide), base.weight.detach().to(wide)
    b = None if base.bias is None else base.bias.detach().to(wide)
    return base_part * (x @ W.T) + bias * plain(b) + scale * (x @ A.to(wide).T @ B.to(wide).T)


def _with_scale(scale: Any) -> Any:
    return lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, scale(rank, alpha))


SCALES = (
    ("leaves out the scale, alpha / rank = {alpha} / {rank}", lambda r, a: 1.0),
    ("scales by alpha = {alpha} without dividing by the rank: the scale is alpha / rank", lambda r, a: a),
    ("scales by alpha / √rank, which is rsLoRA: the scale here is alpha / rank", lambda r, a: a / r**0.5),
    ("scales by alpha · rank: the scale is alpha / rank", lambda r, a: a * r),
    ("scales by rank / alpha, upside down: the scale is alpha / rank", lambda r, a: r / a),
    ("scales by 1 / rank: the scale is alpha / rank", lambda r, a: 1 / r),
    ("applies the scale twice", lambda r, a: (a / r) ** 2),
    ("subtracts the update: it is added", lambda r, a: -a / r),
    ("rounds alpha / rank down to a whole number", lambda r, a: a // r),
)
DROPPED = "drops the base: the update is added to its output"
LAYER_MISTAKES = (
    *(Mistake(says, _with_scale(scale)) for says, scale in SCALES),
    Mistake(
        "drops the update: A and B change nothing in its output",
        lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, 0.0),
    ),
    Mistake("drops the bias", lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, alpha / rank, bias=0.0)),
    Mistake("adds the bias twice", lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, alpha / rank, bias=2.0)),
    Mistake(
        "scales the bias too: only the update is scaled",
        lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, alpha / rank, bias=alpha / rank),
    ),
    Mistake(
        "scales the whole output: only the update is scaled",
        lambda x, base, A, B, rank, alpha: alpha / rank * _forward(x, base, A, B, 1.0),
    ),
    Mistake(DROPPED, lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, alpha / rank, 0.0, 0.0)),
    Mistake(DROPPED, lambda x, base, A, B, rank, alpha: _forward(x, base, A, B, alpha / rank, 1.0, 0.0)),
    Mistake(
        "sends x through B before A, or through a factor the wrong way round",
        lambda x, base, A, B, rank, alpha: _forward(x, base, B, A, alpha / rank),
    ),
    Mistake(
        "sends x through B before A, or through a factor the wrong way round",
        lambda x, base, A, B, rank, alpha: _forward(x, base, A.T, B.T, alpha / rank),
    ),
    Mistake(
        "sends x through B before A, or through a factor the wrong way round",
        lambda x, base, A, B, rank, alpha: _forward(x, base, B.T, A.T, alpha / rank),
    ),
    Mistake(
        "feeds the base's output into the factors: A reads x itself",
        lambda x, base, A, B, rank, alpha: (
            _forward(x, base, A, 0 * B, 1.0) + alpha / rank * (_forward(x, base, A, 0 * B, 1.0) @ A.T @ B.T)
        ),
    ),
)


def _refuse_factor(layer: nn.Module, name: str, size: tuple[int, int], base: nn.Linear) -> None:
    if not hasattr(layer, name):
        raise Wrong(f"{NAME} has no attribute {name}: self.{name} = nn.Parameter(...) of {shape(size)}")
    factor = getattr(layer, name)
    if not isinstance(factor, nn.Parameter):
        why = ": the optimizer and the state dict would not see it" if isinstance(factor, Tensor) else ""
        raise Wrong(f"{NAME} keeps {name} as {kind(factor)}, not as an nn.Parameter{why}")
    if tuple(factor.shape) != size:
        flipped = ": it is transposed" if tuple(factor.shape) == size[::-1] else ""
        raise Wrong(f"{name} of {NAME} has shape {shape(factor)}, but {shape(size)} is expected{flipped}")
    if factor.dtype != torch.float32:
        raise Wrong(
            f"{NAME} creates {name} in {dtype(factor.dtype)} on a base in {dtype(base.weight.dtype)}: keep the factors "
            "in float32, small updates are rounded away in half precision"
        )
    if not factor.requires_grad:
        raise Wrong(f"{NAME} froze {name} as well: freeze the base alone, or before the factors exist")


def _refuse_base(layer: nn.Module, base: nn.Linear) -> None:
    kept = getattr(layer, "base", None)
    if kept is None:
        raise Wrong(f"{NAME} has no attribute base: keep the layer it was given in self.base")
    if kept is not base:
        copied = isinstance(kept, nn.Linear) and torch.equal(kept.weight, base.weight)
        what = "a copy of the base" if copied else kind(kept)
        raise Wrong(f"{NAME} holds {what} in .base: wrap the very layer it was given, self.base = base")
    for name, parameter in base.named_parameters():
        if parameter.requires_grad:
            raise Wrong(f"{NAME} leaves base.{name} trainable: freeze the base with requires_grad_(False)")


def _refuse_extra(layer: nn.Module, base: nn.Linear) -> None:
    known = {id(parameter) for parameter in (*base.parameters(), layer.A, layer.B)}
    for name, parameter in layer.named_parameters(remove_duplicate=False):
        if id(parameter) in known:
            continue
        if parameter.shape == base.weight.shape and torch.equal(parameter, base.weight):
            raise Wrong(f"{NAME} registers W a second time, as the parameter {name}: W stays in .base, frozen")
        raise Wrong(f"{NAME} has one parameter too many, {name} of {shape(parameter)}: only A and B are new")


def _refuse_start(layer: nn.Module) -> None:
    A, B = layer.A.detach(), layer.B.detach()
    if not A.any() and not B.any():
        raise Wrong(f"{NAME} starts with both factors at zero: then neither ever receives a gradient")
    if not A.any():
        raise Wrong(f"{NAME} starts with A = 0 and B random: it is the other way round, A random and B = 0")
    if B.any():
        raise Wrong(f"{NAME} does not start as its base: B must be zero, so that the update is zero")
    if A.numel() > 1 and A.unique().numel() == 1:
        raise Wrong(f"{NAME} fills A with one number: draw it at random, or every direction is the same")


def _refuse_scale(layer: nn.Module, rank: int, alpha: float) -> None:
    wanted = f"alpha / rank = {alpha:g} / {rank} = {alpha / rank:.4g}"
    if not hasattr(layer, "scale"):
        raise Wrong(f"{NAME} has no attribute scale: later exercises read it, so keep self.scale = alpha / rank")
    kept = number(layer.scale, f"the attribute scale of {NAME}")
    if not same(kept, alpha / rank):
        raise Wrong(f"{NAME} keeps {kept:.4g} as its attribute scale, but self.scale is {wanted}")


def _refuse_draw(answer: Guard, cases: Cases) -> None:
    """Wrong unless A comes from torch's global generator, anew for each layer, uniform within ±1/√in."""
    out, wide, rank = cases.integer(30, 40), cases.integer(350, 450), 24
    base = nn.Linear(wide, out)
    seed = cases.seeds(1)[0]

    def draw() -> Tensor:
        return answer(base, rank, 2 * rank + 1, untouched=False).A.detach()

    torch.default_generator.manual_seed(seed)
    first, second = draw(), draw()
    if torch.equal(first, second):
        raise Wrong(f"{NAME} gives two layers the same A: draw from torch's global generator as it is, without a seed")
    torch.default_generator.manual_seed(seed)
    if not torch.equal(first, draw()):
        raise Wrong(
            f"{NAME} gives another A after the same torch.manual_seed: draw it with torch, from the global generator"
        )
    refuse_distribution(first, out, NAME)


def _built(answer: Guard, base: nn.Linear, rank: int, alpha: float) -> nn.Module:
    """The learner's layer around `base`, after everything about it that needs no forward pass was checked."""
    before = [values.detach().clone() for values in base.parameters()]
    layer = answer(base, rank, alpha, untouched=False)
    _refuse_base(layer, base)
    _refuse_factor(layer, "A", (rank, base.in_features), base)
    _refuse_factor(layer, "B", (base.out_features, rank), base)
    _refuse_extra(layer, base)
    _refuse_start(layer)
    _refuse_scale(layer, rank, alpha)
    if any(not torch.equal(then, now) for then, now in zip(before, base.parameters(), strict=True)):
        raise Wrong(f"{NAME} changes the numbers in its base: they stay as they are")
    return layer


def _output(answer: Guard, layer: nn.Module, x: Tensor, base: nn.Linear) -> Tensor:
    case = f"{describe('x', x)}, {describe('base', base)}"
    y = answer.call(layer, x, what="MyLoRALinear's forward", case=case)
    if y is None:
        raise Wrong("the forward of your MyLoRALinear returned nothing: is there a return?")
    size = (*x.shape[:-1], base.out_features)
    tensor(y, size, base.weight.dtype, f"the output of {NAME} for {case}")
    return y


def _refuse_gradients(answer: Guard, layer: nn.Module, x: Tensor, base: nn.Linear, scale: float) -> None:
    """Wrong unless a backward pass reaches A, B and x, with the right numbers, and nothing else."""
    x = x.clone().requires_grad_()
    y = _output(answer, layer, x, base)
    A, B, x2 = (value.detach().clone().requires_grad_() for value in (layer.A, layer.B, x))
    right = torch.autograd.grad(_forward(x2, base, A, B, scale).square().sum(), (A, B, x2))
    if y.requires_grad:
        y.square().sum().backward()
    for name, value, want in zip("ABx", (layer.A, layer.B, x), right, strict=True):
        if value.grad is None:
            raise Wrong(f"no gradient reaches {name} in {NAME}: is there a detach, .data or no_grad in its forward?")
        if not same(value.grad, want):
            raise Wrong(f"the gradient of {name} in {NAME} is wrong although its output is right: is there a detach?")
    layer.A.grad = layer.B.grad = None


def _try(answer: Guard, cases: Cases, trial: Trial, sizes: tuple, kept: torch.dtype, bias: bool) -> None:
    """Build a layer of sizes (out, in, rank, alpha), check it at its start and with random factors."""
    out, wide, rank, alpha = sizes
    base = nn.Linear(wide, out, bias=bias).to(kept)
    layer = _built(answer, base, rank, alpha)
    x = cases.normal(cases.integer(2, 4), wide, dtype=kept)
    start = _output(answer, layer, x, base)
    A, B = layer.A.detach().clone(), layer.B.detach().clone()
    trial.add((x, base, A, B, rank, alpha), start.detach(), base(x).detach())
    with torch.no_grad():
        layer.A.copy_(cases.normal(rank, wide))
        layer.B.copy_(cases.normal(out, rank))
    states = snapshot(layer)
    A, B = layer.A.detach().clone(), layer.B.detach().clone()
    for size in ((len(x), wide), (2, 3, wide)):
        x = cases.normal(*size, dtype=kept)
        got = _output(answer, layer, x, base)
        trial.add((x, base, A, B, rank, alpha), got.detach(), _forward(x, base, A, B, alpha / rank))
    if what := change("layer", states, layer):
        raise Wrong(f"the forward of {NAME} {what}: a forward pass changes nothing")
    if not trial.failures and kept == torch.float32:
        _refuse_gradients(answer, layer, x, base, alpha / rank)


@exercise(
    "3.4",
    takes=("base", "rank", "alpha"),
    points=3,
    minutes=15,
    hints=(
        "The layer owns three things: the frozen layer it wraps, and two new parameters. Its forward is exercise 3.1.",
        "After super().__init__(): self.base = base with requires_grad_(False), self.scale = alpha / rank, A and B as "
        "float32 nn.Parameters, started as in exercise 3.2. In forward, self.base(x) has W and b in it; give the "
        "factors x in their own dtype.",
        "y = base(x); update = (x in A's dtype) through A, through B; return (y + self.scale · update) in y's dtype.",
    ),
)
def MyLoRALinear(answer: Guard, cases: Cases) -> str:
    """A module with a frozen .base, trainable .A and .B, and .scale."""
    if not (inspect.isclass(answer.function) and issubclass(answer.function, nn.Module)):
        raise Wrong("your MyLoRALinear should be a class: class MyLoRALinear(nn.Module)")
    labels = ("x", "base", "A", "B", "rank", "alpha")
    trial = Trial(f"the forward of {NAME}", labels, LAYER_MISTAKES, "with B = 0 it must equal base(x)")
    side = cases.integer(5, 8)
    plans = [((side, side, side, side + cases.pick((3, 7))), torch.float32, True)]
    for bias in (True, False, True):
        out, wide = cases.different(6, 14, 2)
        rank = cases.integer(2, 5)
        plans.append(((out, wide, rank, rank + cases.pick((1, 3, 6))), torch.float32, bias))
    plans.append(((*cases.different(4, 9, 2), 1, cases.pick((2.5, 4))), torch.float32, True))
    for half in (torch.bfloat16, torch.float16):
        plans.append(((*cases.different(8, 16, 2), 4, cases.pick((6, 10))), half, True))
    for sizes, kept, bias in plans:
        try:
            _try(answer, cases, trial, sizes, kept, bias)
        except Wrong:
            if trial.failures:  # the mistake behind the crash has shown itself already
                break
            raise
    trial.verdict()
    _refuse_draw(answer, cases)
    return f"{len(plans)} layers, half-precision bases among them: forward, gradients, dtypes, what is frozen"
