"""Checks 3.1 and 3.3: the forward pass, and the gradients of the two factors by hand.

y = x Wᵀ + b + s·(x Aᵀ) Bᵀ.   x (batch, in); W (out, in); b (out); A (rank, in); B (out, rank); y (batch, out).
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .compare import Mistake, Trial, judge, same, tensor
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise


def plain(b: Tensor | None) -> Tensor | float:
    """The bias as something that can be added."""
    return 0.0 if b is None else b


def right_forward(x: Tensor, W: Tensor, b: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """The LoRA forward pass."""
    return x @ W.T + plain(b) + scale * (x @ A.T @ B.T)


ORDER = "sends x through the factors in the wrong order or orientation: first A (rank, in), then B (out, rank)"
FORWARD_MISTAKES = (
    Mistake(
        "leaves out the scale: the update counts {scale:.4g} times here",
        lambda x, W, b, A, B, scale: right_forward(x, W, b, A, B, 1.0),
    ),
    Mistake(
        "applies the scale twice: {scale:.4g} becomes its square",
        lambda x, W, b, A, B, scale: right_forward(x, W, b, A, B, scale**2),
    ),
    Mistake(
        "divides by the scale: multiply the update by it",
        lambda x, W, b, A, B, scale: right_forward(x, W, b, A, B, 1 / scale),
    ),
    Mistake(
        "scales the whole output: only the update B(A x) is multiplied by {scale:.4g}",
        lambda x, W, b, A, B, scale: scale * right_forward(x, W, b, A, B, 1.0),
    ),
    Mistake(
        "scales the bias too: only the update B(A x) is multiplied by {scale:.4g}",
        lambda x, W, b, A, B, scale: x @ W.T + scale * (x @ A.T @ B.T + plain(b)),
    ),
    Mistake("drops the bias", lambda x, W, b, A, B, scale: right_forward(x, W, None, A, B, scale)),
    Mistake("adds the bias twice", lambda x, W, b, A, B, scale: right_forward(x, W, b, A, B, scale) + plain(b)),
    Mistake("drops x Wᵀ: the frozen layer still answers", lambda x, W, b, A, B, scale: scale * (x @ A.T @ B.T)),
    Mistake(
        "drops x Wᵀ: the frozen layer still answers",
        lambda x, W, b, A, B, scale: scale * (x @ A.T @ B.T) + plain(b),
    ),
    Mistake("drops the update: A and B change nothing", lambda x, W, b, A, B, scale: x @ W.T + plain(b)),
    Mistake("subtracts the update: it is added", lambda x, W, b, A, B, scale: right_forward(x, W, b, A, B, -scale)),
    Mistake(ORDER, lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * (x @ B.T @ A.T)),
    Mistake(ORDER, lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * (x @ A @ B)),
    Mistake(ORDER, lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * (x @ B @ A)),
    Mistake(ORDER, lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * (x @ A.T @ B)),
    Mistake(ORDER, lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * (x @ A @ B.T)),
    Mistake(
        "multiplies by W where its transpose belongs: W is (out, in), so y = x Wᵀ",
        lambda x, W, b, A, B, scale: x @ W + plain(b) + scale * (x @ A.T @ B.T),
    ),
    Mistake(
        "sends the update through W: it goes beside W, from x straight to the output",
        lambda x, W, b, A, B, scale: right_forward(x + scale * (x @ A.T @ B.T), W, b, A, 0 * B, 1.0),
    ),
    Mistake(
        "feeds the output of W into the factors: A reads x itself",
        lambda x, W, b, A, B, scale: right_forward(x, W, b, A, 0 * B, 1.0) + scale * (x @ W.T @ A.T @ B.T),
    ),
)

# W x is written for one column x. These run only where batch = in, so they are looked for when another shape crashes.
COLUMNS = (
    ("W @ x and B @ (A @ x)", lambda x, W, b, A, B, scale: W @ x + plain(b) + scale * (B @ (A @ x))),
    ("B @ (A @ x)", lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * (B @ (A @ x))),
    ("W @ x", lambda x, W, b, A, B, scale: W @ x + plain(b) + scale * (x @ A.T @ B.T)),
    ("A @ x", lambda x, W, b, A, B, scale: x @ W.T + plain(b) + scale * ((A @ x) @ B.T)),
    ("A @ x", lambda x, W, b, A, B, scale: W @ x + plain(b) + scale * ((A @ x) @ B.T)),
)


class _Watch(TorchFunctionMode):
    """Notices when an (out, in) product of the factors is formed."""

    def __init__(self, W: Tensor, A: Tensor, B: Tensor, scale: float) -> None:
        super().__init__()
        update = B @ A
        self.products = (update, scale * update, W + scale * update)
        self.formed = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() == self.products[0].numel():
            matrix = result.squeeze()
            self.formed |= any(same(matrix, product) or same(matrix, product.T) for product in self.products)
        return result


def _forward_cases(cases: Cases) -> list[tuple]:
    """x, W, b, A, B, scale. The first has one size for everything, the last two have no bias."""
    side = cases.integer(4, 6)
    sizes = [(side, side, side, side)]
    for _ in range(5):
        rank = cases.integer(2, 3)
        sizes.append((rank, *cases.different(4, 12, 3)))
    sizes.append((1, *cases.different(3, 9, 3)))
    inputs = []
    for number, (rank, batch, wide, out) in enumerate(sizes):
        dtype = torch.float64 if number == 2 else torch.float32
        draw = [cases.normal(*size, dtype=dtype) for size in ((batch, wide), (out, wide), (rank, wide), (out, rank))]
        x, W, A, B = draw
        b = cases.normal(out, dtype=dtype) if number < len(sizes) - 2 else None
        inputs.append((x, W, b, A, B, cases.pick((0.25, 0.4, 0.6, 1.7, 2.5, 3.5))))
    return inputs


def _refuse_columns(answer: Guard, square: tuple, oblong: tuple) -> None:
    """Wrong if the answer takes the rows of x for columns: it crashes on `oblong`, and `square` shows why."""
    try:
        answer(*oblong)
    except Wrong as crash:
        try:
            got = answer(*square)
        except Wrong:
            raise crash from None  # it fails on any shape, and this one says more
        if found := next((written for written, does in COLUMNS if same(got, does(*square))), ""):
            raise Wrong(
                f"your lora_forward multiplies x from the left, {found}, as if x were one column: it is a batch with "
                f"its examples in rows ({answer.case(*oblong)}), so W x becomes x @ W.T, and A x becomes x @ A.T"
            ) from None


@exercise(
    "3.1",
    takes=("x", "W", "b", "A", "B", "scale"),
    points=1,
    minutes=6,
    hints=(
        "Two paths lead from x to y: one through W, one through the two thin factors. They meet in a sum.",
        "Rows of x are examples, so the base path is x @ W.T. On the other path A comes first: it makes x narrow.",
        "base = x @ W.T, plus b if it is not None; update = (x through A.T) through B.T; return base + scale · update.",
    ),
)
def lora_forward(answer: Guard, cases: Cases) -> str:
    """y = x Wᵀ + b + s·(x Aᵀ) Bᵀ, without forming B A."""
    inputs = _forward_cases(cases)
    _refuse_columns(answer, *inputs[:2])
    count = judge(
        answer,
        inputs,
        right_forward,
        FORWARD_MISTAKES,
        look="take it apart: with B = 0 it must equal x @ W.T + b",
        read=lambda got, want: tensor(got, tuple(want.shape), want.dtype, "the output of your lora_forward"),
    )
    x, W, A, B = (cases.normal(*size) for size in ((5, 64), (48, 64), (2, 64), (48, 2)))
    b, scale = cases.normal(48), 2.5
    watch = _Watch(W, A, B, scale)
    with watch:
        answer(x, W, b, A, B, scale)
    if watch.formed:
        raise Wrong(
            f"your lora_forward is right, but it forms the product of B and A, {W.numel()} numbers, as large as W: "
            f"send x through A and then through B, which are {A.numel() + B.numel()} numbers"
        )
    y = answer(x, W, b, A.clone().requires_grad_(), B.clone().requires_grad_(), scale)
    if not y.requires_grad:
        raise Wrong("your lora_forward cuts A and B off from autograd: leave out detach, .data, no_grad and NumPy")
    return f"the forward pass on {count} random shapes, with and without bias"


def right_gradients(A: Tensor, B: Tensor, scale: float, x: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
    """What autograd says about L = Σ G ∘ y."""
    with torch.enable_grad():
        A, B = A.clone().requires_grad_(), B.clone().requires_grad_()
        return torch.autograd.grad((G * scale * (x @ A.T @ B.T)).sum(), (A, B))


def _scaled(which: int, factor: Any) -> Any:
    """The right gradient of A (0) or B (1) times factor(scale, batch)."""
    return lambda A, B, scale, x, G: factor(scale, len(x)) * right_gradients(A, B, scale, x, G)[which]


def _gradient_mistakes(which: int) -> tuple[Mistake, ...]:
    mine, other = ("A", "B") if which == 0 else ("B", "A")
    off = "is right except for a factor of {scale:.4g}, which is the scale of this test: "
    chain = f"is not the chain rule's: it contains {other}, {'G and x' if which == 0 else 'x and G'}, not {mine} itself"
    return (
        Mistake(off + "is s applied to both gradients?", _scaled(which, lambda s, n: 1 / s)),
        Mistake(off + "it is applied twice", _scaled(which, lambda s, n: s)),
        Mistake(
            "is a mean over the batch: y has one row for each example, and their contributions add up",
            _scaled(which, lambda s, n: 1 / n),
        ),
        Mistake(
            "is a mean over the batch without the scale: sum over the batch, and multiply by s",
            _scaled(which, lambda s, n: 1 / n / s),
        ),
        Mistake("has the wrong sign: a gradient points uphill", _scaled(which, lambda s, n: -1)),
        Mistake(
            f"is the gradient of {other}: return (grad_A, grad_B), in this order",
            lambda A, B, scale, x, G: right_gradients(A, B, scale, x, G)[1 - which],
        ),
        Mistake(
            "is transposed: a gradient has the shape of its factor",
            lambda A, B, scale, x, G: right_gradients(A, B, scale, x, G)[which].T,
        ),
        Mistake(chain, lambda A, B, scale, x, G: scale * ((G @ A).T @ x if which == 0 else G.T @ (x @ B))),
        Mistake(chain, lambda A, B, scale, x, G: scale * ((G @ A.T).T @ x if which == 0 else G.T @ (x @ B.T))),
        Mistake(f"leaves out {other}: the chain rule passes through it", lambda A, B, scale, x, G: scale * G.T @ x),
        Mistake(
            f"uses {other} transposed the wrong way round",
            lambda A, B, scale, x, G: scale * ((G @ B.T).T @ x if which == 0 else G.T @ (x @ A)),
        ),
    )


def _read_gradients(got: Any, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(f"your factor_gradients should return (grad_A, grad_B), not {kind(got)}")
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else None for part in got]
    if shapes == [tuple(B.shape), tuple(A.shape)] != [tuple(A.shape), tuple(B.shape)]:
        raise Wrong("your factor_gradients returns the gradient of B first: return (grad_A, grad_B), in this order")
    for part, factor, name in zip(got, (A, B), ("A", "B"), strict=True):
        if isinstance(part, Tensor) and part.shape[1:] == factor.shape and part.ndim == 3:
            raise Wrong(f"∂L/∂{name} keeps one gradient for each of the {len(part)} examples: sum over the batch")
    return tuple(
        tensor(part, tuple(factor.shape), factor.dtype, f"∂L/∂{name}")
        for part, factor, name in zip(got, (A, B), ("A", "B"), strict=True)
    )


def _by_hand(answer: Guard, args: tuple) -> Any:
    # In inference mode autograd records nothing, even with enable_grad inside.
    try:
        with torch.inference_mode():
            return answer(*args)
    except Wrong as wrong:
        if "does not require grad" in str(wrong) or "nference tensor" in str(wrong):
            raise Wrong("your factor_gradients asks autograd: write both products by hand, without backward") from None
        raise


@exercise(
    "3.3",
    takes=("A", "B", "scale", "x", "G"),
    points=2,
    minutes=10,
    hints=(
        "y depends on A and B through s·(x Aᵀ) Bᵀ only. Hold one factor fixed: what remains is a linear layer.",
        "For z = h Bᵀ the gradient of B is (∂L/∂z)ᵀ h. Here h = x Aᵀ. For A, first carry G back through B: G B.",
        "grad_B = s · Gᵀ times (x Aᵀ), shape (out, rank); grad_A = s · (G B)ᵀ times x, shape (rank, in).",
    ),
)
def factor_gradients(answer: Guard, cases: Cases) -> str:
    """Both gradients by the chain rule."""
    look = "write down the shapes of every product; a gradient has the shape of its factor"
    trials = [Trial(f"∂L/∂{'AB'[which]}", answer.labels, _gradient_mistakes(which), look) for which in (0, 1)]
    inputs = [(A, B, scale, x, cases.normal(len(x), len(W))) for x, W, _, A, B, scale in _forward_cases(cases)]
    inputs = [(A, B, scale, x, G.to(x.dtype)) for A, B, scale, x, G in inputs]
    inputs.append((inputs[1][0], torch.zeros_like(inputs[1][1]), *inputs[1][2:]))  # as training starts
    for args in inputs:
        try:
            got = _read_gradients(_by_hand(answer, args), *args[:2])
        except Wrong:
            if any(trial.failures for trial in trials):  # the mistake behind the crash has shown itself already
                break
            raise
        for trial, mine, right in zip(trials, got, right_gradients(*args), strict=True):
            trial.add(args, mine, right)
    for trial in trials:
        trial.verdict()
    return f"both gradients match autograd on {len(inputs)} random shapes"
