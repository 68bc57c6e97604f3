"""Answers to exercises 1.1 and 1.2 of notebook 01."""

import torch

from lora_lab import spectrum

from . import right, wrong


def two_factors(rows, cols, rank, generator):
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, cols, generator=generator)


def sum_of_outer_products(rows, cols, rank, generator):
    total = torch.zeros(rows, cols)
    for _ in range(rank):
        column, row = torch.randn(rows, generator=generator), torch.randn(cols, generator=generator)
        total = total + torch.outer(column, row)
    return total


def uniform_double(rows, cols, rank, generator):
    left = torch.empty(rows, rank, dtype=torch.float64).uniform_(-1, 1, generator=generator)
    return left @ torch.rand(rank, cols, generator=generator, dtype=torch.float64)


def cut_spectrum(rows, cols, rank, generator):
    U, s, Vh = torch.linalg.svd(torch.randn(rows, cols, generator=generator), full_matrices=False)
    return U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]


def full_rank(rows, cols, rank, generator):
    return torch.randn(rows, cols, generator=generator)


def inner(size):
    def build(rows, cols, rank, generator):
        return two_factors(rows, cols, size(rank, rows, cols), generator)

    return build


def outer(rows, cols, rank, generator):
    return torch.outer(torch.randn(rows, generator=generator), torch.randn(cols, generator=generator))


def zeros(rows, cols, rank, generator):
    return torch.zeros(rows, cols)


def first_rows_only(rows, cols, rank, generator):
    matrix = torch.zeros(rows, cols)
    matrix[:rank] = torch.randn(rank, cols, generator=generator)
    return matrix


def global_state(rows, cols, rank, generator):
    return torch.randn(rows, rank) @ torch.randn(rank, cols)


def half_global(rows, cols, rank, generator):
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, cols)


def reseeded(rows, cols, rank, generator):
    return two_factors(rows, cols, rank, generator.manual_seed(0))


def own_generator(rows, cols, rank, generator):
    return two_factors(rows, cols, rank, torch.Generator().manual_seed(7))


def transposed(rows, cols, rank, generator):
    return two_factors(cols, rows, rank, generator)


def whole_numbers(rows, cols, rank, generator):
    left = torch.randint(-9, 10, (rows, rank), generator=generator)
    return left @ torch.randint(-9, 10, (rank, cols), generator=generator)


def unmatched(rows, cols, rank, generator):
    return torch.randn(rank, rows, generator=generator) @ torch.randn(rank, cols, generator=generator)


LOW_RANK = [
    right("1.1", "library", spectrum.random_low_rank),
    right("1.1", "two factors", two_factors),
    right("1.1", "sum of outer products", sum_of_outer_products),
    right("1.1", "uniform float64", uniform_double),
    right("1.1", "cut spectrum", cut_spectrum),
    wrong("1.1", "full rank", "a random matrix has full rank", full_rank),
    wrong(
        "1.1", "inner size is rows", "a random matrix has full rank", inner(lambda rank, rows, cols: max(rows, cols))
    ),
    wrong("1.1", "one too many", "off by one", inner(lambda rank, rows, cols: rank + 1)),
    wrong("1.1", "one too few", "off by one", inner(lambda rank, rows, cols: max(rank - 1, 0))),
    wrong("1.1", "outer product", "one column times one row", outer),
    wrong("1.1", "twice the rank", "the inner size of the product, the one", inner(lambda rank, rows, cols: 2 * rank)),
    wrong("1.1", "zeros", "every entry is zero", zeros),
    wrong("1.1", "rows of zeros", "whole rows or columns", first_rows_only),
    wrong("1.1", "global state", "pass generator=generator", global_state),
    wrong("1.1", "half global", "pass generator=generator", half_global),
    wrong("1.1", "reseeded", "without seeding it", reseeded),
    wrong("1.1", "own generator", "without seeding it", own_generator),
    wrong("1.1", "transposed", "it is transposed", transposed),
    wrong("1.1", "whole numbers", "draw real numbers", whole_numbers),
    wrong("1.1", "unmatched factors", "raised RuntimeError for rows =", unmatched),
]


def by_svd(W, rank):
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank] @ torch.diag(s[:rank]) @ Vh[:rank]


def by_eigenvectors(W, rank):
    _, vectors = torch.linalg.eigh(W.T @ W)  # ascending: the last ones belong to the largest
    V = vectors[:, -rank:]
    return W @ V @ V.T


def by_deflation(W, rank):
    U, s, Vh = torch.linalg.svd(W.double())
    total = torch.zeros_like(W, dtype=torch.float64)
    for k in range(rank):
        total += s[k] * torch.outer(U[:, k], Vh[k])
    return total


def zeroed_values(W, rank):
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    s[rank:] = 0
    return U @ torch.diag(s) @ Vh


def kept(build):
    def truncate(W, rank):
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        return build(U, s, Vh, rank)

    return truncate


def largest_entries(W, rank):
    count = min(rank * (W.shape[0] + W.shape[1]), W.numel())
    smallest = W.abs().flatten().sort(descending=True).values[count - 1]
    return W * (W.abs() >= smallest)


def in_place(W, rank):
    W -= W - by_svd(W, rank)
    return W


def first_columns(W, rank):
    result = W.clone()
    result[:, rank:] = 0
    return result


def first_rows(W, rank):
    result = W.clone()
    result[rank:] = 0
    return result


def random_projection(W, rank):
    Q, _ = torch.linalg.qr(torch.randn(W.shape[1], rank, dtype=W.dtype))
    return W @ Q @ Q.T


TRUNCATE = [
    right("1.2", "library", spectrum.truncate),
    right("1.2", "svd with diag", by_svd),
    right("1.2", "eigenvectors", by_eigenvectors),
    right("1.2", "sum of pieces in float64", by_deflation),
    right("1.2", "zeroed values", zeroed_values),
    wrong("1.2", "smallest kept", "kept the smallest", kept(lambda U, s, Vh, r: U[:, -r:] * s[-r:] @ Vh[-r:])),
    wrong("1.2", "one too many", "one direction too many", lambda W, rank: by_svd(W, rank + 1)),
    wrong("1.2", "one too few", "one direction too few", lambda W, rank: by_svd(W, rank - 1)),
    wrong(
        "1.2",
        "first left out",
        "left out the first direction",
        kept(lambda U, s, Vh, r: U[:, 1 : r + 1] * s[1 : r + 1] @ Vh[1 : r + 1]),
    ),
    wrong("1.2", "no values", "left out the singular values", kept(lambda U, s, Vh, r: U[:, :r] @ Vh[:r])),
    wrong("1.2", "squared values", "singular values twice", kept(lambda U, s, Vh, r: U[:, :r] * s[:r] ** 2 @ Vh[:r])),
    wrong(
        "1.2",
        "root of values",
        "square root of the singular values",
        kept(lambda U, s, Vh, r: U[:, :r] * s[:r].sqrt() @ Vh[:r]),
    ),
    wrong("1.2", "V for Vh", "already transposed", kept(lambda U, s, Vh, r: U[:, :r] * s[:r] @ Vh[:, :r].T)),
    wrong("1.2", "Vh transposed", "already transposed", kept(lambda U, s, Vh, r: U[:, :r] * s[:r] @ Vh.T[:r])),
    wrong("1.2", "rows of U", "takes rows of U", kept(lambda U, s, Vh, r: (U[:r].T * s[:r]) @ Vh[:r])),
    wrong("1.2", "W itself", "returned W unchanged", lambda W, rank: W),
    wrong("1.2", "residual", "what the cut removes", lambda W, rank: W - by_svd(W, rank)),
    wrong("1.2", "transpose", "returned the transpose", lambda W, rank: by_svd(W, rank).T),
    wrong("1.2", "first columns", "columns of W itself", first_columns),
    wrong("1.2", "first rows", "rows of W itself", first_rows),
    wrong("1.2", "largest entries", "that is pruning", largest_entries),
    wrong("1.2", "random directions", "is off for W", random_projection),
    wrong("1.2", "in place", "changed W itself", in_place),
    wrong("1.2", "factors", "returned a tuple of 3", lambda W, rank: torch.linalg.svd(W, full_matrices=False)),
    wrong("1.2", "half precision", "the dtype got lost", lambda W, rank: by_svd(W, rank).half()),
    wrong("1.2", "double to float", "the dtype got lost", lambda W, rank: by_svd(W, rank).float()),
    wrong("1.2", "list", "returned a list of", lambda W, rank: by_svd(W, rank).tolist()),
    wrong("1.2", "nan", "nan or infinite", lambda W, rank: by_svd(W, rank) / 0),
    wrong("1.2", "full svd without cut", "returned W unchanged", kept(lambda U, s, Vh, r: U * s @ Vh)),
]
