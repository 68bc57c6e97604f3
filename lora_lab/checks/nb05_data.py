"""Checks 5.5 and 5.6: what data says about a layer.

eva    the leading principal components of the layer's inputs X (tokens, in), centred: rows of A (rank, in)
corda  C (in, in) = 1/n Σᵢ Xᵢᵀ Xᵢ / |max Xᵢ|², over n samples Xᵢ (tokensᵢ, in)
"""

from typing import Any

import torch
from torch import Tensor

from .compare import Mistake, Trial, judge, same, tensor
from .guard import Guard, Wrong
from .harness import Cases, exercise


def _components(X: Tensor, rank: int) -> Tensor:
    """The first `rank` right singular vectors of X, signs fixed."""
    return signed(torch.linalg.svd(X.double(), full_matrices=False).Vh[:rank])


def right_directions(X: Tensor, rank: int) -> Tensor:
    """The first principal components of X, signs fixed."""
    return _components(X - X.mean(0), rank)


def signed(V: Tensor) -> Tensor:
    """Each row with its largest entry positive: v and -v are the same direction."""
    return V * V.gather(1, V.abs().argmax(1, keepdim=True)).sign()


def _scaled(X: Tensor, rank: int, power: float) -> Tensor:
    S, Vh = torch.linalg.svd((X - X.mean(0)).double(), full_matrices=False)[1:]
    return signed(S[:rank, None] ** power * Vh[:rank])


EVA_MISTAKES = (
    Mistake("does not centre X: the first direction is then nearly the mean of the inputs", _components),
    Mistake("centres each token, not each input: subtract X.mean(0)", lambda X, r: _components(X - X.mean(1, True), r)),
    Mistake(
        "subtracts one number, the mean of all entries: each input has its own mean",
        lambda X, r: _components(X - X.mean(), r),
    ),
    Mistake(
        "divides each input by its deviation: that is the PCA of correlations, EVA only centres",
        lambda X, r: _components((X - X.mean(0)) / X.std(0), r),
    ),
    Mistake(
        "takes the directions of the smallest variance: the largest come first",
        lambda X, r: signed(torch.linalg.svd((X - X.mean(0)).double(), full_matrices=False).Vh[-r:].flip(0)),
    ),
    Mistake(
        "takes the directions of the smallest variance: the largest come first",
        lambda X, r: signed(torch.linalg.svd((X - X.mean(0)).double(), full_matrices=False).Vh[-r:]),
    ),
    Mistake("multiplies each direction by its singular value: the rows have length 1", lambda X, r: _scaled(X, r, 1.0)),
    Mistake("multiplies each direction by the root of its singular value: length 1", lambda X, r: _scaled(X, r, 0.5)),
    Mistake("divides by the root of the singular values: that is the option whiten", lambda X, r: _scaled(X, r, -0.5)),
    Mistake(
        "lists the directions from the smallest variance to the largest: eigh does, so flip them",
        lambda X, r: right_directions(X, r).flip(0),
    ),
    Mistake(
        "is the components' columns, not their rows: svd returns Vᵀ already",
        lambda X, r: signed(torch.linalg.svd((X - X.mean(0)).double(), full_matrices=True).Vh.T[:r]),
    ),
)


def _inputs(cases: Cases, tokens: int, wide: int) -> Tensor:
    """Inputs with a mean and clearly separated variances, along random directions."""
    basis = torch.linalg.qr(cases.normal(wide, wide)).Q
    sizes = 1.6 ** -torch.arange(wide) * 3
    drawn = torch.linalg.qr(cases.normal(tokens, min(tokens, wide))).Q * tokens**0.5
    X = drawn * sizes[: drawn.shape[1]] @ basis[: drawn.shape[1]]
    return X + 2 * cases.normal(wide)


@exercise(
    "5.5",
    takes=("X", "rank"),
    points=2,
    minutes=8,
    hints=(
        "Principal components are directions of variance, and variance is measured from the mean.",
        "Subtract the mean of each input (over the tokens), then take the right singular vectors.",
        "torch.linalg.svd(X - X.mean(0), full_matrices=False).Vh[:rank]. The sign of a row is free.",
    ),
)
def eva_directions(answer: Guard, cases: Cases) -> str:
    """The leading principal components of the centred inputs, rows of length 1."""
    sizes = [(cases.integer(30, 60), cases.integer(6, 9)), (cases.integer(40, 80), cases.integer(10, 12))]
    sizes += [(cases.integer(14, 20), cases.integer(8, 10)), (cases.integer(100, 140), cases.integer(6, 8))]
    inputs = [(_inputs(cases, tokens, wide), cases.integer(2, 4)) for tokens, wide in sizes]

    def read(got: Any, want: Tensor) -> Tensor:
        if isinstance(got, Tensor) and got.shape == (want.shape[1], want.shape[0]) != want.shape:
            raise Wrong("your eva_directions returns the directions as columns: A is (rank, in), one direction a row")
        return signed(tensor(got, tuple(want.shape), torch.float32, "your eva_directions", wider=True)).double()

    count = judge(
        answer,
        inputs,
        right_directions,
        EVA_MISTAKES,
        look="each row is a right singular vector of X - X.mean(0), up to its sign",
        read=read,
    )
    return f"the leading principal components of {count} random sets of inputs"


def right_covariance(samples: list[Tensor]) -> Tensor:
    """1/n Σ XᵀX / max(X)², in fp32."""
    scaled = [X.float() / X.float().max().abs() for X in samples]
    return sum(X.T @ X for X in scaled) / len(samples)


def _tokens(samples: list[Tensor]) -> int:
    return sum(len(X) for X in samples)


def _absolute(samples: list[Tensor]) -> Tensor:
    scaled = [X.float() / X.float().abs().max() for X in samples]
    return sum(X.T @ X for X in scaled) / len(samples)


def _plain(samples: list[Tensor]) -> Tensor:
    return sum(X.float().T @ X.float() for X in samples)


def _once(samples: list[Tensor]) -> Tensor:
    return sum(X.float().T @ X.float() / X.float().max().abs() for X in samples) / len(samples)


def _centred(samples: list[Tensor]) -> Tensor:
    scaled = [X.float() / X.float().max().abs() for X in samples]
    return sum((X - X.mean(0)).T @ (X - X.mean(0)) for X in scaled) / len(samples)


def _turned(samples: list[Tensor]) -> Tensor:
    X = samples[0].float() / samples[0].float().max().abs()
    return X @ X.T


def _together(samples: list[Tensor]) -> Tensor:
    X = torch.cat([X.float() for X in samples])
    X = X / X.max().abs()
    return X.T @ X


COVARIANCE_MISTAKES = (
    Mistake("is tokens by tokens: the covariance is (in, in). Multiply Xᵀ X, not X Xᵀ", _turned),
    Mistake(
        "divides by the number of all tokens: the mean goes over samples",
        lambda samples: right_covariance(samples) * len(samples) / _tokens(samples),
    ),
    Mistake("adds the samples up: divide by their number", lambda samples: right_covariance(samples) * len(samples)),
    Mistake(
        "takes the largest entry in size: PEFT and the authors take max(X), the largest with its sign, and only then "
        "its absolute value",
        _absolute,
    ),
    Mistake("does not divide each sample by its largest entry", lambda samples: _plain(samples) / len(samples)),
    Mistake("neither divides each sample by its largest entry nor takes the mean over the samples", _plain),
    Mistake("divides each sample's XᵀX by max(X) once: X itself is divided, so it is max(X)²", _once),
    Mistake("centres X: CorDA's covariance is not centred, only EVA's components are", _centred),
    Mistake(
        "centres X: CorDA's covariance is not centred, only EVA's components are",
        lambda samples: right_covariance([X.float() - X.float().mean(0) for X in samples]),
    ),
    Mistake(
        "scales all samples by one number: each sample is divided by its own largest entry",
        lambda samples: _together(samples) / len(samples),
    ),
    Mistake("scales all samples by one number: each sample is divided by its own largest entry", _together),
    Mistake(
        "gives each sample the weight of its tokens: every sample counts the same",
        lambda samples: (
            sum((X.float() / X.float().max().abs()).T @ (X.float() / X.float().max().abs()) / len(X) for X in samples)
            / len(samples)
        ),
    ),
    Mistake("looks at the first sample alone", lambda samples: right_covariance(samples[:1])),
    Mistake("looks at the last sample alone", lambda samples: right_covariance(samples[-1:])),
)


def _samples(cases: Cases, count: int, wide: int) -> list[Tensor]:
    """Samples of different lengths and sizes; the largest entry in size is often negative."""
    found = []
    for _ in range(count):
        X = cases.normal(cases.integer(3, 12), wide) * cases.real(0.5, 4.0) + 0.3
        X[0, 0] = -1.3 * X.abs().max()
        found.append(X)
    return found


def _flat(got: Any, wide: int, tokens: int) -> Tensor:
    if isinstance(got, Tensor) and got.ndim == 2 and got.shape[0] == got.shape[1] != wide:
        raise Wrong(
            f"your corda_covariance returns {got.shape[0]} × {got.shape[1]}: the covariance is (in, in), "
            f"{wide} × {wide} here, whatever the number of tokens or outputs. Multiply Xᵀ X, not X Xᵀ"
        )
    return tensor(got, (wide, wide), torch.float32, "your corda_covariance", wider=True)


@exercise(
    "5.6",
    takes=("samples",),
    points=2,
    minutes=10,
    hints=(
        "One sample X has a row for each token. Which of XᵀX and XXᵀ has the size (in, in)?",
        "For each sample: to float32 first, divide by |max(X)|, add Xᵀ X. At the end divide by the number of samples.",
        "for X in samples: X = X.float(); X = X / X.max().abs(); total = total + X.T @ X. Return total / len(samples).",
    ),
)
def corda_covariance(answer: Guard, cases: Cases) -> str:
    """1/n Σ XᵀX / max(X)², in fp32 whatever the samples are in."""
    trial = Trial(
        "your corda_covariance", answer.labels, COVARIANCE_MISTAKES, "it is the mean over samples of XᵀX / max(X)²"
    )
    cells = [[X[:5] for X in _samples(cases, 1, 5)]]
    cells += [_samples(cases, cases.integer(2, 5), cases.integer(4, 9)) for _ in range(4)]
    for samples in cells:
        wide = samples[0].shape[1]
        before = [X.clone() for X in samples]
        try:
            got = _flat(answer(samples), wide, len(samples[0]))
        except Wrong:
            if trial.failures:
                break
            raise
        if not all(torch.equal(X, then) for X, then in zip(samples, before, strict=True)):
            raise Wrong("your corda_covariance changes its samples (an operation in place, such as /=)")
        trial.add((samples,), got, right_covariance(samples))
    trial.verdict()
    half = [200 * X.half() for X in _samples(cases, 3, 6)]
    got = answer(half)
    if isinstance(got, Tensor) and got.dtype == torch.float16:
        raise Wrong("your corda_covariance computes in float16 for samples in float16: take them to float32 first")
    finite = isinstance(got, Tensor) and bool(got.isfinite().all())
    if not finite or not same(_flat(got, 6, 0), right_covariance(half)):
        raise Wrong(
            "your corda_covariance loses digits for samples in float16: squares above 65,504 overflow there. "
            "Take each sample to float32 before anything else"
        )
    return f"the (in, in) covariance of {len(cells) + 1} random sets of samples, one of them in float16"
