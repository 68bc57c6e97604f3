"""Checks 1.1 and 1.2: a random matrix of a given rank, and the best approximation of a lower rank."""

from collections.abc import Callable

import torch
from torch import Tensor

from lora_lab.spectrum import truncate as right_truncate

from .compare import Mistake, judge, tensor
from .describe import dtype, kind, shape
from .guard import Guard, Wrong
from .harness import Cases, exercise


def with_spectrum(cases: Cases, values: Tensor, rows: int, cols: int) -> Tensor:
    """A (rows, cols) matrix in random directions with these singular values."""
    left, _ = torch.linalg.qr(cases.normal(rows, len(values), dtype=torch.float64))
    right, _ = torch.linalg.qr(cases.normal(cols, len(values), dtype=torch.float64))
    return (left * values.double()) @ right.T


def falling(cases: Cases, count: int) -> Tensor:
    """`count` clearly different singular values in float64, the largest first."""
    steps = [cases.real(0.65, 0.85) for _ in range(count)]
    return cases.real(1.5, 6.0) * torch.tensor(steps, dtype=torch.float64).cumprod(0)


def _numerical_rank(matrix: Tensor) -> int:
    values = torch.linalg.svdvals(matrix.double())
    return int((values > 3e-6 * values[0]).sum()) if values[0] > 0 else 0


def _rank_sentence(found: list[tuple[int, int, int, int]]) -> str:
    """What went wrong, from (rows, cols, wanted rank, rank found) of every case."""
    rows, cols, want, got = next(case for case in found if case[2] != case[3])
    start = f"your random_low_rank has rank {got} for rows = {rows}, cols = {cols}, rank = {want}: "
    if all(got == min(rows, cols) for rows, cols, _, got in found):
        return start + "a random matrix has full rank, so build it as a product that squeezes through `rank` dimensions"
    if all(got == 0 for *_, got in found):
        return start + "every entry is zero"
    if all(got == 1 for *_, got in found):
        return start + "one column times one row has rank 1; the factors need `rank` columns and rows"
    if any(all(got == min(want + gap, rows, cols) for rows, cols, want, got in found) for gap in (1, -1)):
        return start + "the inner size of the product is off by one"
    return start + "the inner size of the product, the one that both factors share, is what sets the rank"


def _seeded(answer: Guard, rows: int, cols: int, rank: int, seed: int) -> Tensor:
    result = answer(rows, cols, rank, torch.Generator().manual_seed(seed))
    if isinstance(result, Tensor) and not result.is_floating_point():
        raise Wrong(f"your random_low_rank gave {dtype(result.dtype)} entries: draw real numbers, as torch.randn does")
    kept = result.dtype if isinstance(result, Tensor) else torch.float32
    return tensor(result, (rows, cols), kept, "the result of your random_low_rank")


def refuse_unseeded(answer: Guard, cases: Cases, draw: Callable[[Guard, int], Tensor]) -> None:
    """Wrong unless what `draw(answer, seed)` returns depends on the generator, on all of it, and on nothing else."""
    one, other = cases.seeds(2)
    first = draw(answer, one)
    torch.default_generator.manual_seed(other)
    if not torch.equal(first, draw(answer, one)):
        raise Wrong(
            f"your {answer.name} gives different numbers for two generators of the same seed: "
            "pass generator=generator to every random draw"
        )
    if torch.equal(first, draw(answer, other)):
        raise Wrong(
            f"your {answer.name} gives the same numbers for generators of different seeds: "
            "draw from the generator as it comes, without seeding it"
        )


@exercise(
    "1.1",
    takes=("rows", "cols", "rank", "generator"),
    points=1,
    minutes=5,
    hints=(
        "A matrix of rank r has rows that all mix the same r rows. Which product of two smaller matrices says that?",
        "(rows × rank) times (rank × cols) has at most `rank` dimensions: everything passes through the middle.",
        "Two draws of torch.randn(..., generator=generator), shapes (rows, rank) and (rank, cols), multiplied.",
    ),
)
def random_low_rank(answer: Guard, cases: Cases) -> str:
    """(rows, cols), exactly that rank, a product of two random factors."""
    rows, cols = cases.different(9, 20, 2)
    shapes = [(rows, cols, cases.integer(3, 6))]
    for _ in range(3):
        rows, cols = cases.different(4, 40, 2)
        shapes.append((rows, cols, cases.integer(2, min(rows, cols) - 1)))
    rows, cols = cases.different(5, 30, 2)
    shapes += [(rows, cols, 1), (cases.integer(3, 5), cases.integer(20, 30), 3)]
    found = []
    for case, seed in zip(shapes, cases.seeds(len(shapes)), strict=True):
        matrix = _seeded(answer, *case, seed)
        found.append((*case, _numerical_rank(matrix)))
        if matrix.any() and not (matrix.any(0).all() and matrix.any(1).all()):
            raise Wrong(
                f"your random_low_rank leaves whole rows or columns of its {shape(matrix)} matrix at zero: "
                "multiply two factors that are both random and full"
            )
    if any(want != got for *_, want, got in found):
        raise Wrong(_rank_sentence(found))
    refuse_unseeded(answer, cases, lambda answer, seed: _seeded(answer, 7, 11, 3, seed))
    return f"exactly the rank asked for on {len(shapes)} random shapes"


def _svd(W: Tensor, keep: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    return keep(*torch.linalg.svd(W, full_matrices=False))


def _largest_entries(W: Tensor, rank: int) -> Tensor:
    count = rank * sum(W.shape)
    threshold = W.abs().flatten().topk(min(count, W.numel())).values[-1]
    return torch.where(W.abs() >= threshold, W, 0)


def _corner(W: Tensor, rank: int, rows: bool, cols: bool) -> Tensor:
    kept = torch.zeros_like(W)
    part = (slice(rank if rows else None), slice(rank if cols else None))
    kept[part] = W[part]
    return kept


ROTATED = "has the right singular vectors the wrong way round: torch.linalg.svd returns Vh, already transposed"
TRUNCATE_MISTAKES = (
    Mistake("returned W unchanged: only the first {rank} singular values may stay", lambda W, rank: W),
    Mistake(
        "kept the smallest singular values: they come largest first, so the best {rank} are at the start",
        lambda W, rank: _svd(W, lambda U, s, Vh: (U[:, -rank:] * s[-rank:]) @ Vh[-rank:]),
    ),
    Mistake(
        "returned what the cut removes, W minus the approximation",
        lambda W, rank: W - right_truncate(W, rank),
    ),
    Mistake(
        "kept one direction too many: [:rank] holds exactly `rank` of them",
        lambda W, rank: right_truncate(W, min(rank + 1, *W.shape)),
    ),
    Mistake(
        "kept one direction too few: [:rank] holds exactly `rank` of them",
        lambda W, rank: right_truncate(W, rank - 1),
    ),
    Mistake(
        "left out the first direction, the one that matters most: counting starts at 0",
        lambda W, rank: _svd(W, lambda U, s, Vh: (U[:, 1 : rank + 1] * s[1 : rank + 1]) @ Vh[1 : rank + 1]),
    ),
    Mistake(
        "left out the singular values: without them every kept direction has length 1",
        lambda W, rank: _svd(W, lambda U, s, Vh: U[:, :rank] @ Vh[:rank]),
    ),
    Mistake(
        "multiplies by the singular values twice: U, diag(s) and Vh once each",
        lambda W, rank: _svd(W, lambda U, s, Vh: (U[:, :rank] * s[:rank] ** 2) @ Vh[:rank]),
    ),
    Mistake(
        "takes the square root of the singular values once too often: √s on one side needs √s on the other",
        lambda W, rank: _svd(W, lambda U, s, Vh: (U[:, :rank] * s[:rank].sqrt()) @ Vh[:rank]),
    ),
    Mistake(ROTATED, lambda W, rank: _svd(W, lambda U, s, Vh: (U[:, :rank] * s[:rank]) @ Vh.T[:rank])),
    Mistake(ROTATED, lambda W, rank: _svd(W, lambda U, s, Vh: (U[:, :rank] * s[:rank]) @ Vh[:, :rank].T)),
    Mistake(
        "takes rows of U where its columns are the directions: U[:, :rank]",
        lambda W, rank: _svd(W, lambda U, s, Vh: (U[:rank].T * s[:rank]) @ Vh[:rank]),
    ),
    Mistake("returned the transpose", lambda W, rank: right_truncate(W, rank).T),
    Mistake("kept the first {rank} columns of W itself", lambda W, rank: _corner(W, rank, False, True)),
    Mistake("kept the first {rank} rows of W itself", lambda W, rank: _corner(W, rank, True, False)),
    Mistake("kept the first {rank} rows and columns of W itself", lambda W, rank: _corner(W, rank, True, True)),
    Mistake("kept the largest entries of W: that is pruning, and its rank is not {rank}", _largest_entries),
)


def _read_matrix(got: object, want: Tensor) -> Tensor:
    if isinstance(got, tuple | list):
        raise Wrong(f"your truncate returned {kind(got)}: multiply the factors and return the one matrix")
    return tensor(got, tuple(want.shape), want.dtype, "the result of your truncate", wider=True)


@exercise(
    "1.2",
    takes=("W", "rank"),
    points=2,
    minutes=8,
    hints=(
        "The singular value decomposition writes W as a sum of rank-1 pieces, largest first. Which do you keep?",
        "U, s, Vh = torch.linalg.svd(W, full_matrices=False): keep `rank` columns of U, values of s and rows of Vh.",
        "(kept columns of U, each times its singular value) @ (kept rows of Vh): Vh needs no transpose any more.",
    ),
)
def truncate(answer: Guard, cases: Cases) -> str:
    """The best approximation of this rank (Eckart and Young)."""
    side = cases.integer(6, 9)
    sizes = [(side, side, cases.integer(3, side - 3))]
    for _ in range(2):
        small, large = cases.integer(5, 9), cases.integer(10, 16)
        sizes += [(small, large, cases.integer(2, small - 2)), (large, small, cases.integer(2, small - 2))]
    small = cases.integer(3, 5)
    sizes += [(*cases.different(4, 12, 2), 1), (small, cases.integer(6, 9), small)]
    inputs = []
    for number, (rows, cols, rank) in enumerate(sizes):
        matrix = with_spectrum(cases, falling(cases, min(rows, cols)), rows, cols)
        inputs.append((matrix if number == 2 else matrix.float(), rank))
    look = "compare the rank of your result and its distance from W with what the singular values promise"
    count = judge(answer, inputs, right_truncate, TRUNCATE_MISTAKES, look=look, read=_read_matrix)
    return f"the best rank-r approximation on {count} random shapes"
