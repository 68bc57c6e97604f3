"""LoRA-GA: start where the first step of full fine-tuning would go, from the singular vectors of its gradient.

    G (out, in) = U S Vᵀ the mean gradient of W on some batches; 2r of its singular vectors, r for each factor.
    ArB2r: A = V[:, :r]ᵀ, B = U[:, r:2r] diag(S[r:2r]), then made the right size (`stabilization`).    base <- W - s·BA

Source: Wang et al. 2024 (arXiv:2407.05000), section 3, and the authors' code (github.com/Outsider565/LoRA-GA). G comes
from `statistics.mean_gradients`. PEFT's differs from both in two ways, and is the default here: its B carries S, and
"stable" scales B alone. So the size of its s·BA follows that of the gradient (a loss that is summed, not averaged,
changes the start). `form="paper"` has neither.
"""

import math

import torch
from torch import Tensor, nn

from lora_lab.init.check import check_matrix, check_positive, check_weight, refuse_not_finite
from lora_lab.init.eva import positive
from lora_lab.lowrank import top_svd

DIRECTIONS = ("ArB2r", "A2rBr", "ArBr", "random")
STABILIZATIONS = ("stable", "weight_svd", "gd_scale", "unit")
FORMS = ("peft", "paper")
TOLERANCE = 1e-2  # bounds the angle of each singular vector to the true one; measured, it is 3e-4 and less


@torch.no_grad()
def lora_ga_factors(
    weight: Tensor,
    rank: int,
    scale: float,
    gradient: Tensor,
    direction: str = "ArB2r",
    stabilization: str = "stable",
    gamma: float = 16,
    form: str = "peft",
    niter: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) for a `weight` (out, in) with this mean `gradient` (out, in).

    direction: which of the 2·rank singular triplets each factor takes. "ArB2r": A the first half, B the second;
        "A2rBr": the other way round; "ArBr": A the odd, B the even ones (from 0); "random": both the same `rank` of
        them, from the global random state (form "paper": A one half of a shuffle, B the other).
    stabilization: "stable": times out^¼ / √gamma; "weight_svd": B as large as W; "gd_scale": A and B divided by s;
        "unit": as they are.
    niter: None finds the singular vectors to an angle of 1e-3, the same every time. A number finds them as PEFT does,
        with `torch.svd_lowrank` (q = 4·rank, PEFT's niter is 4) after PEFT's two unused draws: bit-equal to PEFT under
        the same global seed, and off by what those iterations leave.

    Where PEFT goes on silently, this refuses: no gradient, a zero gradient, 2·rank > min(out, in), an unknown name.
    `out` is that of W also for a `Conv1D`, where PEFT takes the stored axis, which is `in`.
    Computed and returned in fp32 (fp64 if weight or gradient is).
    Raises ValueError or TypeError, also for a gradient that is not finite or of another shape.
    """
    W = check_weight(weight, rank, scale)
    _check_options(W, rank, direction, stabilization, gamma, form, niter)
    G = _check_gradient(gradient, W)
    W = W.to(G.dtype)
    U, S, Vh = _exact(G, rank) if niter is None else _as_peft(G, rank, niter)
    for_A, for_B = _split(direction, rank, form, S.device)
    A, B = Vh[for_A], U[:, for_B]
    if form == "peft":
        B = B * S[for_B]
    if stabilization == "stable":
        size = W.shape[0] ** 0.25 / math.sqrt(gamma)
        A, B = (A, B * size) if form == "peft" else (A * size, B * size)
    elif stabilization == "weight_svd" and form == "peft":
        largest = top_svd(W, 1)[1] if niter is None else torch.svd_lowrank(W, q=rank, niter=niter)[1]
        first = S[for_B][0]
        B = B * torch.where(first > 0, largest[0] / first, 1)
    elif stabilization == "weight_svd":
        size = (top_svd(W, rank)[1] / scale).sqrt().mean()
        A, B = A * size, B * size
    elif stabilization == "gd_scale":
        A, B = A / scale, B / scale
    return A.contiguous(), B.contiguous()


def _split(direction: str, rank: int, form: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which singular triplets A takes, and which B."""
    every = torch.arange(2 * rank, device=device)
    first, second = every[:rank], every[rank:]
    if direction == "random":
        shuffled = torch.randperm(2 * rank).to(device)
        return shuffled[:rank], shuffled[:rank] if form == "peft" else shuffled[rank:]
    return {"ArB2r": (first, second), "A2rBr": (second, first), "ArBr": (every[1::2], every[0::2])}[direction]


def _exact(G: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = top_svd(G, 2 * rank, TOLERANCE)
    noise = 10 * torch.finfo(S.dtype).eps * S[0]
    found = int(S.gt(noise).sum())
    if found < 2 * rank:
        raise ValueError(f"the gradient has rank {found} < 2·rank = {2 * rank}: collect it over more labelled tokens")
    # Of u and -u the same one on every machine: A takes other triplets than B, so that s·BA depends on the choice.
    sign = positive(Vh)
    return U * sign, S, Vh * sign[:, None]


def _as_peft(G: Tensor, rank: int, niter: int) -> tuple[Tensor, Tensor, Tensor]:
    # PEFT has built two nn.Linear by now, and throws their values away.
    for shape in ((rank, G.shape[1]), (G.shape[0], rank)):
        nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))
    U, S, V = torch.svd_lowrank(G, q=min(4 * rank, *G.shape), niter=niter)
    return U, S, V.T


def _check_options(W: Tensor, rank: int, direction: str, stabilization: str, gamma: float, form: str, niter) -> None:
    for name, value, allowed in (
        ("direction", direction, DIRECTIONS),
        ("stabilization", stabilization, STABILIZATIONS),
        ("form", form, FORMS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    if 2 * rank > min(W.shape):
        raise ValueError(f"LoRA-GA takes 2·rank singular vectors: 2·{rank} > min(out, in) = {min(W.shape)}")
    check_positive(gamma, "gamma")
    if niter is not None and (isinstance(niter, bool) or not isinstance(niter, int) or niter < 0):
        raise ValueError(f"niter must be None or a whole number from 0, got {niter!r}")


def _check_gradient(gradient: Tensor, W: Tensor) -> Tensor:
    if gradient is None:
        raise TypeError("LoRA-GA needs the mean gradient of the weight, got None: collect it with mean_gradients")
    G = check_matrix(gradient, "gradient").detach()
    if G.shape != W.shape:
        raise ValueError(f"gradient must have the weight's shape {tuple(W.shape)}, got {tuple(G.shape)}")
    G = G.to(W.device, torch.promote_types(G.dtype, W.dtype))
    refuse_not_finite(G, f"gradient {tuple(G.shape)}")
    if not G.any():
        raise ValueError(f"gradient {tuple(G.shape)} is zero: the loss does not depend on this weight")
    return G
