"""Checks 5.1 and 5.2: the starts that look at nothing but the shape.

gaussian    A (rank, in) ~ N(0, 1/rank²);  B (out, rank) = 0
orthogonal  A and B random, of rank `rank`/2 each, with BA = 0
"""

import torch
from torch import Tensor

from .compare import tensor
from .describe import kind
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb01_matrix import refuse_unseeded

TAKES = ("out_features", "in_features", "rank", "generator")

# What the standard deviation of A would be if it were computed from something else.
DEVIATIONS = (
    ("1/√rank: the variance is 1/rank², so its root is 1/rank", lambda out, wide, rank: rank**-0.5),
    ("1/rank²: that is the variance, used as the standard deviation", lambda out, wide, rank: rank**-2.0),
    ("1/√in: the default's bound comes from `in`, the Gaussian start does not look at it", lambda o, w, r: w**-0.5),
    ("1/√(3·in): that is the default's standard deviation", lambda out, wide, rank: (3 * wide) ** -0.5),
    ("1/√out: this start looks at the rank alone", lambda out, wide, rank: out**-0.5),
    ("1: randn has to be divided by the rank", lambda out, wide, rank: 1.0),
    ("rank: divide by it", lambda out, wide, rank: float(rank)),
    ("√(2/(in + rank)): that is Xavier's", lambda out, wide, rank: (2 / (wide + rank)) ** 0.5),
    ("√(1/(3·rank²)): a uniform bound's deviation", lambda out, wide, rank: (1 / 3) ** 0.5 / rank),
)


def read_factors(answer: Guard, out: int, wide: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """A and B as tensors of the right shapes, or Wrong."""
    got = answer(out, wide, rank, torch.Generator().manual_seed(seed))
    return pair(got, (rank, wide), (out, rank), answer.name)


def pair(got: object, for_A: tuple, for_B: tuple, name: str) -> tuple[Tensor, Tensor]:
    """`got` as (A, B) of these shapes, in float32 or better, or Wrong."""
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Wrong(f"your {name} should return (A, B), not {kind(got)}")
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else None for part in got]
    if shapes == [for_B, for_A] and for_A != for_B:
        raise Wrong(f"your {name} returns B first: return (A, B), with A (rank, in) and B (out, rank)")
    A = tensor(got[0], for_A, torch.float32, f"A of your {name}, (rank, in),", wider=True)
    return A, tensor(got[1], for_B, torch.float32, f"B of your {name}, (out, rank),", wider=True)


def _refuse_start(A: Tensor, B: Tensor) -> None:
    if not A.any():
        both = "gives two zero factors: neither ever moves" if not B.any() else "has it the other way round"
        raise Wrong(f"your gaussian_start {both}: A is random and B is zero")
    if B.any():
        raise Wrong(
            f"your gaussian_start starts B at values up to {float(B.abs().max()):.3g}: B is zero, so that s·BA is too"
        )
    if len(A) > 1 and bool((A[0] == A).all()):
        raise Wrong("your gaussian_start gives A equal rows, which makes its rank 1: draw rank × in numbers")


def _refuse_distribution(A: Tensor, out: int) -> None:
    rank, wide = A.shape
    found, want = float(A.double().square().mean()) ** 0.5, 1 / rank
    numbers = f"rank = {rank}, in = {wide}: √mean(A²) is {found:.4g}, and 1/rank is {want:.4g}"
    if abs(float(A.double().mean())) > 0.2 * want:
        raise Wrong(f"your gaussian_start draws A around {float(A.mean()):.3g}, not around zero ({numbers})")
    if float(A.double().pow(4).mean()) / found**4 < 2.4:  # uniform 1.8, Gaussian 3
        raise Wrong(f"your gaussian_start draws A from a uniform distribution: take a normal one ({numbers})")
    if abs(found / want - 1) > 0.05:
        near = (says for says, value in DEVIATIONS if abs(found / value(out, wide, rank) - 1) < 0.05)
        says = next(near, f"about {found / want:.3g} times 1/rank")
        raise Wrong(f"your gaussian_start draws A with a standard deviation of {says} ({numbers})")


@exercise(
    "5.1",
    takes=TAKES,
    points=1,
    minutes=5,
    hints=(
        "A looks at the rank alone, and B is what it is in the default start.",
        "torch.randn has standard deviation 1. N(0, 1/rank²) has variance 1/rank²: what is its standard deviation?",
        "A = randn of shape (rank, in) with generator=generator, divided by rank; B = zeros of shape (out, rank).",
    ),
)
def gaussian_start(answer: Guard, cases: Cases) -> str:
    """A normal with deviation 1/rank, B zero."""
    small = [(*cases.different(4, 12, 2), cases.integer(2, 3)), (*cases.different(3, 9, 2), 1)]
    large = [
        (cases.integer(500, 600), cases.integer(1900, 2300), 6),
        (cases.integer(60, 90), cases.integer(700, 900), 24),
    ]
    seeds = cases.seeds(4)
    for (out, wide, rank), seed in zip(small, seeds[:2], strict=True):
        _refuse_start(*read_factors(answer, out, wide, rank, seed))
    for (out, wide, rank), seed in zip(large, seeds[2:], strict=True):
        A, B = read_factors(answer, out, wide, rank, seed)
        _refuse_start(A, B)
        _refuse_distribution(A, out)
    refuse_unseeded(answer, cases, lambda guard, seed: read_factors(guard, 7, 11, 3, seed)[0])
    return f"A normal with deviation 1/rank and B zero on {len(small) + len(large)} random shapes"


def _numerical_rank(matrix: Tensor) -> int:
    s = torch.linalg.svdvals(matrix.double())
    return int((s > 1e-5 * s[0]).sum()) if s[0] > 0 else 0


def _refuse_product(A: Tensor, B: Tensor) -> None:
    """Wrong unless A and B are not zero, their product is, and each spans rank/2 directions."""
    rank = len(A)
    if not A.any() or not B.any():
        zero = " and ".join(name for name, factor in (("A", A), ("B", B)) if not factor.any())
        raise Wrong(f"your orthogonal_start makes {zero} zero: here both are random, and only their product is zero")
    product, size = (B.double() @ A.double()).norm(), B.double().norm() * A.double().norm()
    dims = _numerical_rank(A), _numerical_rank(B)
    if product > 1e-5 * size:
        lost = f"‖BA‖ is {float(product):.3g}, where ‖B‖·‖A‖ is {float(size):.3g}"
        if dims == (rank, rank):
            raise Wrong(
                f"your orthogonal_start gives A and B all {rank} directions, so that they must meet: {lost}. "
                "Each gets half of the rows of Q"
            )
        raise Wrong(
            f"your orthogonal_start lets A and B meet: {lost}. A takes the even rows of Q, B the odd ones, "
            "and Q must be orthogonal"
        )
    if rank > 2 and not (A.any(1).all() and B.any(0).all()):
        raise Wrong(
            "your orthogonal_start leaves rows of A or columns of B at zero: mix all of them, Q is a random matrix"
        )
    if dims != (rank // 2, rank // 2):
        raise Wrong(
            f"your orthogonal_start uses {dims[0]} directions in A and {dims[1]} in B: rank/2 = {rank // 2} each"
        )


@exercise(
    "5.2",
    takes=TAKES,
    points=2,
    minutes=12,
    hints=(
        "The r inner dimensions are shared by A and B. If A uses one half of them and B the other, BA = 0.",
        "Q from torch.linalg.qr of a random (rank, rank) matrix has orthonormal rows. Q[0::2] and Q[1::2] are rank/2 "
        "rows each. Mix the first set into the rows of A's transpose with random numbers, the second set into B.",
        "A = (randn(in, rank/2) @ Q[0::2]).T / 10; B = randn(out, rank/2) @ Q[1::2] / 10; each randn with the "
        "generator. Before that: an odd rank raises ValueError.",
    ),
)
def orthogonal_start(answer: Guard, cases: Cases) -> str:
    """Two random factors whose product is zero."""
    shapes = [(*cases.different(9, 20, 2), 2 * cases.integer(2, 4)) for _ in range(3)] + [
        (*cases.different(5, 9, 2), 2),
        (cases.integer(900, 1100), cases.integer(600, 800), 12),
    ]
    for (out, wide, rank), seed in zip(shapes, cases.seeds(len(shapes)), strict=True):
        A, B = read_factors(answer, out, wide, rank, seed)
        _refuse_product(A, B)
    for name, factor in (("A", A), ("B", B)):  # of the last, large one
        size = float(factor.double().square().mean()) ** 0.5
        if abs(size / (0.1 / 2**0.5) - 1) > 0.15:
            times = "ten times too large: divide by 10" if abs(size / 0.5**0.5 - 1) < 0.15 else "not of the right size"
            raise Wrong(f"your orthogonal_start makes {name} {times} (√mean({name}²) is {size:.3g}, 0.0707 is right)")
        if abs(float(factor.double().mean())) > 0.2 * size:
            raise Wrong(f"your orthogonal_start draws {name} on one side of zero: take randn, not rand")
    refuse_unseeded(
        answer, cases, lambda guard, seed: torch.cat([f.flatten() for f in read_factors(guard, 7, 11, 4, seed)])
    )
    odd = (cases.integer(8, 12), cases.integer(13, 17), 3, torch.Generator().manual_seed(0))
    error = answer.refusal(*odd)
    if error is None:
        raise Wrong("your orthogonal_start takes rank = 3: an odd rank has no half, so raise a ValueError")
    if not isinstance(error, ValueError):
        raise Wrong(f"your orthogonal_start raises {type(error).__name__} for rank = 3: raise a ValueError")
    return f"BA = 0 from two factors that both learn, on {len(shapes)} random shapes; an odd rank is refused"
