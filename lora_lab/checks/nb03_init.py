"""Check 3.2: how the factors start. A (rank, in) ~ U(-1/√in, 1/√in); B (out, rank) = 0."""

import torch
from torch import Tensor

from .compare import tensor
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb01_matrix import refuse_unseeded

# What the bound would be if it were computed from something else.
BOUNDS = (
    ("1/√rank: it comes from in_features, the number of inputs that are summed up", lambda out, wide, rank: rank**-0.5),
    ("1/√out: it comes from in_features, the number of inputs that are summed up", lambda out, wide, rank: out**-0.5),
    ("1/in: a square root is missing", lambda out, wide, rank: 1 / wide),
    ("√in: it is 1 over that", lambda out, wide, rank: wide**0.5),
    ("1: rand and uniform_ have to be scaled to ±1/√in", lambda out, wide, rank: 1.0),
    ("half of 1/√in: rand() - 0.5 lies within ±0.5", lambda out, wide, rank: 0.5 * wide**-0.5),
    ("0.5: rand() - 0.5 still has to be scaled to ±1/√in", lambda out, wide, rank: 0.5),
    ("√(6/in): that is kaiming_uniform_ without a = √5", lambda out, wide, rank: (6 / wide) ** 0.5),
    ("√(3/in): that makes 1/√in the standard deviation, not the bound", lambda out, wide, rank: (3 / wide) ** 0.5),
    ("√(1/(3·in)): that is the standard deviation, used as the bound", lambda out, wide, rank: (3 * wide) ** -0.5),
    ("1/(3·in): that is the variance, used as the bound", lambda out, wide, rank: 1 / (3 * wide)),
    ("√(6/(in + rank)): that is Xavier's bound", lambda out, wide, rank: (6 / (wide + rank)) ** 0.5),
)


def _read(answer: Guard, out: int, wide: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    got = answer(out, wide, rank, torch.Generator().manual_seed(seed))
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(f"your init_factors should return (A, B), not {kind(got)}")
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else None for part in got]
    if shapes == [(out, rank), (rank, wide)]:
        raise Wrong("your init_factors returns B first: return (A, B), with A (rank, in) and B (out, rank)")
    A = tensor(got[0], (rank, wide), torch.float32, "A of your init_factors, (rank, in),", wider=True)
    return A, tensor(got[1], (out, rank), torch.float32, "B of your init_factors, (out, rank),", wider=True)


def _refuse_start(A: Tensor, B: Tensor) -> None:
    """Wrong unless A is random and B is zero."""
    if not A.any() and not B.any():
        raise Wrong(
            "your init_factors gives two zero factors: each gradient contains the other factor, so neither ever moves"
        )
    if not A.any():
        raise Wrong(
            "your init_factors has it the other way round: A is random and B is zero, yours is A = 0 and B random"
        )
    if B.any():
        raise Wrong(
            f"your init_factors starts B at values up to {float(B.abs().max()):.3g}: B is zero, "
            "so that the adapted model first answers like its base"
        )
    if len(A) > 1 and bool((A[0] == A).all()):
        raise Wrong("your init_factors gives A equal rows, which makes its rank 1: draw rank × in numbers")
    if A.unique().numel() < 0.9 * A.numel():
        raise Wrong("your init_factors repeats numbers in A: draw every entry on its own")


def refuse_distribution(A: Tensor, out: int, subject: str) -> None:
    """Wrong unless the entries of a large A (rank, in) are uniform within ±1/√in."""
    rank, wide = A.shape
    bound, largest = wide**-0.5, float(A.abs().max())
    numbers = f"in = {wide}: the bound is {bound:.4g}, and the largest entry of A is {largest:.4g}"
    if float(A.min()) >= 0 or float(A.max()) <= 0:
        raise Wrong(f"{subject} draws A on one side of zero only: it is uniform from -1/√in to 1/√in ({numbers})")
    if float(A.double().pow(4).mean() / A.double().square().mean() ** 2) > 2.3:  # uniform 1.8, Gaussian 3
        raise Wrong(f"{subject} draws A from a Gaussian: it is uniform within ±1/√in ({numbers})")
    if abs(largest / bound - 1) > 0.01:
        found = (says for says, value in BOUNDS if abs(largest / value(out, wide, rank) - 1) < 0.01)
        says = next(found, f"about {largest / bound:.3g} times 1/√in")
        raise Wrong(f"{subject} draws A within ±{says} ({numbers})")
    grid = torch.linspace(0, 1, A.numel(), dtype=torch.float64)
    gap = float(((A.double().flatten().sort().values / bound + 1) / 2 - grid).abs().max())
    if gap > 0.025:
        raise Wrong(f"{subject} keeps within ±1/√in, but does not draw A uniformly there ({numbers})")


@exercise(
    "3.2",
    takes=("out_features", "in_features", "rank", "generator"),
    points=2,
    minutes=8,
    hints=(
        "At step 0 the adapted model must answer like its base; at step 1 something must move. Which factor is zero?",
        "B is zeros, (out, rank). A is uniform within ±1/√in, (rank, in): scale and shift torch.rand, or fill an empty "
        "tensor with uniform_. Both take generator=generator.",
        "bound = in_features to the power -0.5; A = (2 · rand of shape (rank, in), with the generator, - 1) · bound; "
        "B = zeros of shape (out, rank); return A, B.",
    ),
)
def init_factors(answer: Guard, cases: Cases) -> str:
    """A uniform within ±1/√in, B zero."""
    small = [(*cases.different(4, 12, 2), cases.integer(2, 3)), (*cases.different(3, 9, 2), 1)]
    for (out, wide, rank), seed in zip(small, cases.seeds(2), strict=True):
        _refuse_start(*_read(answer, out, wide, rank, seed))
    large = [
        (cases.integer(500, 600), cases.integer(350, 450), 48),
        (cases.integer(90, 130), cases.integer(1900, 2300), 10),
    ]
    for (out, wide, rank), seed in zip(large, cases.seeds(2), strict=True):
        A, B = _read(answer, out, wide, rank, seed)
        _refuse_start(A, B)
        refuse_distribution(A, out, "your init_factors")
    refuse_unseeded(answer, cases, lambda guard, seed: _read(guard, 7, 11, 3, seed)[0])
    return f"A uniform within ±1/√in and B zero on {len(small) + len(large)} random shapes"
