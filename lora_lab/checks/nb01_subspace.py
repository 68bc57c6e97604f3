"""Check 1.6: how much the top directions of one adapter lie inside the top directions of another."""

from collections.abc import Callable

import torch
from torch import Tensor

from lora_lab.spectrum import subspace_similarity as right_similarity

from .compare import Mistake, judge, number
from .guard import Guard, Wrong
from .harness import Cases, exercise
from .nb01_matrix import falling


def _top(A: Tensor, count: int) -> Tensor:
    """The first right singular vectors, (in, count)."""
    return torch.linalg.svd(A, full_matrices=False).Vh[:count].T


def _bottom(A: Tensor, count: int) -> Tensor:
    return torch.linalg.svd(A, full_matrices=False).Vh[-count:].T


def _left(A: Tensor, count: int) -> Tensor:
    return torch.linalg.svd(A, full_matrices=False).U[:, :count]


def _sliced(A: Tensor, count: int) -> Tensor:
    return torch.linalg.svd(A, full_matrices=False).Vh[:, :count]


def _raw(A: Tensor, count: int) -> Tensor:
    return A[:count].T


def _unit_rows(A: Tensor, count: int) -> Tensor:
    return (A / A.norm(dim=1, keepdim=True))[:count].T


def _first_rows(A: Tensor, count: int) -> Tensor:
    return torch.linalg.qr(A[:count].T).Q


def _columns(A: Tensor, count: int) -> Tensor:
    return torch.linalg.qr(A).Q[:, :count]


def _between(basis: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """The similarity with `basis` in place of the top right singular vectors."""
    return lambda A1, A2, i, j: (basis(A1, i).T @ basis(A2, j)).square().sum() / min(i, j)


_similar = _between(_top)  # beyond the rank a slice ends early, as the learner's would, where the library refuses


def _overlap(A1: Tensor, A2: Tensor, i: int, j: int) -> Tensor:
    return _top(A1, i).T @ _top(A2, j)


MISTAKES = (
    Mistake(
        "divides by the larger of i and j: it is min(i, j), the largest value that the squared norm can take",
        lambda A1, A2, i, j: _overlap(A1, A2, i, j).square().sum() / max(i, j),
    ),
    Mistake(
        "forgot the square of the norm",
        lambda A1, A2, i, j: _overlap(A1, A2, i, j).norm() / min(i, j),
    ),
    Mistake(
        "takes a root too many: φ is the squared norm over min(i, j)",
        lambda A1, A2, i, j: _similar(A1, A2, i, j) ** 0.5,
    ),
    Mistake("forgot to divide by min(i, j)", lambda A1, A2, i, j: _overlap(A1, A2, i, j).square().sum()),
    Mistake(
        "gave the norm itself: square it, and divide by min(i, j)", lambda A1, A2, i, j: _overlap(A1, A2, i, j).norm()
    ),
    Mistake(
        "divides by i: it is the smaller of i and j", lambda A1, A2, i, j: _overlap(A1, A2, i, j).square().sum() / i
    ),
    Mistake(
        "divides by j: it is the smaller of i and j", lambda A1, A2, i, j: _overlap(A1, A2, i, j).square().sum() / j
    ),
    Mistake(
        "divides by i · j, as a mean over the entries does: divide the sum of squares by min(i, j)",
        lambda A1, A2, i, j: _overlap(A1, A2, i, j).square().mean(),
    ),
    Mistake(
        "divides by the rank of A: it is min(i, j)",
        lambda A1, A2, i, j: _overlap(A1, A2, i, j).square().sum() / min(len(A1), len(A2)),
    ),
    Mistake(
        "uses the rows of A as they are: they are neither of length 1 nor at right angles, so take singular vectors",
        _between(_raw),
    ),
    Mistake(
        "only gives the rows of A length 1: they are not at right angles to each other, so take singular vectors",
        _between(_unit_rows),
    ),
    Mistake(
        "spans the first i and j rows of A: the top directions are the first right singular vectors",
        _between(_first_rows),
    ),
    Mistake(
        "compares column spaces: the first output of the SVD belongs to them. The directions in the input space, which "
        "the rows of A span, are the right singular vectors",
        _between(_left),
    ),
    Mistake("compares column spaces: directions in the input space are spanned by the rows of A", _between(_columns)),
    Mistake(
        "takes columns of Vh: the right singular vectors are its rows, Vh[:i]",
        _between(_sliced),
    ),
    Mistake("takes the last directions: the singular values come largest first", _between(_bottom)),
    Mistake(
        "uses i for both matrices: the first j directions of A2 are asked for",
        lambda A1, A2, i, j: _overlap(A1, A2, i, i).square().sum() / min(i, j),
    ),
    Mistake(
        "uses i for both matrices: the first j directions of A2 are asked for",
        lambda A1, A2, i, j: _similar(A1, A2, i, i),
    ),
    Mistake(
        "uses j for both matrices: the first i directions of A1 are asked for",
        lambda A1, A2, i, j: _similar(A1, A2, j, j),
    ),
    Mistake(
        "uses min(i, j) directions of both: all i of A1 and all j of A2 count",
        lambda A1, A2, i, j: _similar(A1, A2, min(i, j), min(i, j)),
    ),
    Mistake("swapped i and j: i belongs to A1, j to A2", lambda A1, A2, i, j: _similar(A1, A2, j, i)),
    Mistake(
        "uses every direction of both: only the first i and the first j count",
        lambda A1, A2, i, j: _overlap(A1, A2, len(A1), len(A2)).square().sum() / min(i, j),
    ),
    Mistake(
        "compares direction 1 with 1, 2 with 2 and so on: every one of the i is compared with every one of the j",
        lambda A1, A2, i, j: _overlap(A1, A2, i, j).diagonal().square().sum() / min(i, j),
    ),
    Mistake(
        "takes the largest singular value for the norm: the Frobenius norm adds up all squared entries",
        lambda A1, A2, i, j: torch.linalg.matrix_norm(_overlap(A1, A2, i, j), 2) ** 2 / min(i, j),
    ),
    Mistake(
        "adds up cosines without squaring them",
        lambda A1, A2, i, j: torch.linalg.matrix_norm(_overlap(A1, A2, i, j), "nuc") / min(i, j),
    ),
)


def _pair(cases: Cases, rank_1: int, rank_2: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two factors whose row spaces overlap in part, each with clearly different singular values."""
    shared = cases.normal(width, max(rank_1, rank_2), dtype=torch.float64)
    factors = []
    for rank in (rank_1, rank_2):
        directions = shared[:, :rank] + cases.real(0.5, 1.2) * cases.normal(width, rank, dtype=torch.float64)
        right, _ = torch.linalg.qr(directions)
        left, _ = torch.linalg.qr(cases.normal(rank, rank, dtype=torch.float64))
        factors.append(((left * falling(cases, rank)) @ right.T).to(dtype))
    return factors[0], factors[1]


def _inputs(cases: Cases) -> list[tuple[Tensor, Tensor, int, int]]:
    sizes = []
    for _ in range(3):  # square: left and right singular vectors have the same shape
        side = cases.integer(6, 8)
        sizes.append((side, side, side, *cases.different(2, 4, 2)))
    for _ in range(4):
        rank_1, rank_2 = cases.different(3, 8, 2)
        i, j = cases.integer(1, rank_1), cases.integer(1, rank_2)
        sizes.append((rank_1, rank_2, cases.integer(10, 24), i, j))
    sizes += [(4, 7, 18, 2, 5), (7, 4, 15, 5, 2), (5, 1, 12, 3, 1)]  # i < j, j < i, rank 1
    dtypes = [torch.float64 if number % 3 == 2 else torch.float32 for number in range(len(sizes))]
    return [
        (*_pair(cases, rank_1, rank_2, width, dtype), i, j)
        for (rank_1, rank_2, width, i, j), dtype in zip(sizes, dtypes, strict=True)
    ]


@exercise(
    "1.6",
    takes=("A1", "A2", "i", "j"),
    points=3,
    minutes=12,
    hints=(
        "Two subspaces agree when the directions of one lie in the other. Which directions of A (rank, in) live in the "
        "input space, and how do you get them at right angles to each other?",
        "The first i rows of Vh from torch.linalg.svd(A1, full_matrices=False), and the first j from A2. Their inner "
        "products form an i × j matrix of cosines: φ is its squared Frobenius norm over min(i, j).",
        "M = (first i rows of Vh1) @ (first j rows of Vh2).T, then the sum of M squared over min(i, j), as a float.",
    ),
)
def subspace_similarity(answer: Guard, cases: Cases) -> str:
    """Equation 4 of the LoRA paper."""
    inputs = _inputs(cases)
    count = judge(
        answer,
        inputs,
        right_similarity,
        MISTAKES,
        look="φ lies between 0 and 1, and is 1 for a matrix and itself with i = j",
        read=lambda got, _: number(got, "the result of your subspace_similarity"),
    )
    A1 = inputs[3][0]
    mixed = torch.linalg.qr(cases.normal(len(A1), len(A1)))[0] @ A1
    for other, said in ((A1, "a matrix and itself"), (mixed, "two matrices with the same row space")):
        same_space = number(answer(A1, other, len(A1), len(A1)), "the result of your subspace_similarity")
        if abs(same_space - 1) > 1e-3:
            raise Wrong(f"your subspace_similarity gives {same_space:.4g} for {said}, with i = j = rank: 1 is right")
    return f"φ of {count + 2} pairs of factors, from 0 (at right angles) to 1 (inside each other)"
