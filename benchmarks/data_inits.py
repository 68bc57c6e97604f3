"""CorDA, EVA and LoRA-GA: the factors made of what was collected from a model, ours beside PEFT's.

From the statistic to A, B and the residual: PEFT's by its layer's own init, on a ready layer. Weights, inputs and
gradients have singular values that fall like 1/i. The difference in the table is the largest angle of our space to the
true one (for ipm to PEFT's).
"""

import copy
from collections.abc import Callable, Iterator

import peft
import torch
from peft.tuners.lora import corda as their_corda
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.utils.incremental_pca import IncrementalPCA as TheirPCA
from torch import Tensor, nn

from benchmarks.timing import Case, device
from lora_lab.init.components import IncrementalPCA
from lora_lab.init.corda import corda_factors, damped
from lora_lab.init.lora_ga import lora_ga_factors
from lora_lab.spectrum import principal_angles

RANK, ALPHA = 16, 24
ANGLE = 1e-3
QUICK = [(512, 512), (1024, 1024), (1408, 512)]
SHAPES = [(1024, 1024), (2048, 2048), (4096, 4096), (2816, 1024), (1024, 2816), (11008, 4096), (4096, 11008)]
LARGEST_SVD = 4096**3  # out·in·min(out, in): PEFT's full SVD of more than this takes minutes a call


def cases(quick: bool) -> Iterator[Case]:
    for out, in_ in QUICK if quick else SHAPES:
        if out * in_ * min(out, in_) <= LARGEST_SVD or device().type == "cuda":
            for method in ("ipm", "kpm"):
                yield corda(out, in_, method)
        yield lora_ga(out, in_)
    for in_ in (512, 1024) if quick else (1024, 2048, 4096, 11008):
        yield components(in_, tokens=1024 if quick else 2048)


def fall(out: int, in_: int) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (out, in) with singular values 1/i, and its first 2·RANK singular vectors, U (out, ·) and Vh (·, in)."""
    k = min(out, in_)
    generator = torch.Generator().manual_seed(out + in_)
    U, V = (torch.linalg.qr(torch.randn(n, k, generator=generator).to(device())).Q for n in (out, in_))
    size = 1 / torch.arange(1, k + 1, device=device())
    return U * size @ V.T, U[:, : 2 * RANK].contiguous(), V.T[: 2 * RANK].contiguous()


def angle(found: Tensor, true: Tensor) -> float:
    """The largest angle between the row spaces. AssertionError above 1e-3."""
    largest = principal_angles(found, true).max().item()
    assert largest <= ANGLE, f"angle {largest:.1e} > {ANGLE:.0e}"
    return largest


def layers(W: Tensor, **config) -> tuple[nn.Linear, nn.Module]:
    """The same linear layer, bare and in PEFT's wrapper, whose adapter is not yet what the init makes it."""
    bare = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    bare.weight = nn.Parameter(W.clone())
    model = nn.Sequential(copy.deepcopy(bare))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], **config))
    return bare, wrapped.base_model.model[0]


def ours(factors: Callable, **options) -> Callable:
    """A call that makes the factors of a layer's weight, and takes them out of it in place."""

    @torch.no_grad()
    def run(argument: tuple) -> tuple[Tensor, Tensor]:
        W, scale = argument[0].weight, ALPHA / RANK
        A, B = factors(W, RANK, scale, **options)
        W.addmm_(B, A, alpha=-scale)
        return A, B

    return run


def corda(out: int, in_: int, method: str) -> Case:
    # As trained weights are: a few large directions, and a bulk like noise, down to zero if it is square.
    W = fall(out, in_)[0] + 0.05 * torch.randn(out, in_, device=device()) / max(out, in_) ** 0.5
    X = fall(4 * in_, in_)[0] * in_**0.5
    C = X.T @ X
    config = peft.LoraConfig(r=RANK, init_lora_weights="corda", corda_config=CordaConfig(corda_method=method))

    def theirs(argument: tuple) -> nn.Module:
        wrapper = argument[1]
        linear = wrapper.base_layer
        linear.corda_method, linear.rank, linear.covariance_matrix = method, RANK, C
        linear.eigens = their_corda.collect_eigens_for_layer(linear, config)
        model = nn.ModuleDict({"q_proj": linear})
        config.target_modules = ["q_proj"]
        their_corda.crop_corda_eigens(model, config)
        wrapper.corda_init("default", "corda")
        return wrapper

    def check(mine: tuple[Tensor, Tensor], his: nn.Module) -> float | None:
        if method == "ipm":
            return angle(mine[1].T, his.lora_B["default"].weight.T)
        if min(out, in_) > 2048:
            return None  # in fp64, for the truth, that would take minutes
        U = torch.linalg.svd(W.double() @ damped(C).double(), full_matrices=False).U.float()
        return angle(mine[1].T, U[:, -RANK:].T)

    return Case(
        topic="data_inits",
        group=f"corda {method}",
        name=f"corda {method}, {out} x {in_}",
        setup=lambda: layers(W),
        ours=ours(corda_factors, covariance=C, method=method),
        theirs=theirs,
        goal=3.0,
        check=check,
        note="" if method == "ipm" else "PEFT's directions are noise: in fp32 the smallest values are rounding",
    )


def lora_ga(out: int, in_: int) -> Case:
    G, _, Vh = fall(out, in_)
    W = G.flip(0).contiguous()

    def theirs(argument: tuple) -> nn.Module:
        argument[1].base_layer._peft_loraga_grad = G
        argument[1].lora_ga_init("default", LoraGAConfig())
        return argument[1]

    def check(mine: tuple[Tensor, Tensor], his: nn.Module) -> float:
        return angle(mine[0], Vh[:RANK])

    return Case(
        topic="data_inits",
        group="lora_ga",
        name=f"lora_ga, {out} x {in_}",
        setup=lambda: layers(W),
        ours=ours(lora_ga_factors, gradient=G),
        theirs=theirs,
        goal=3.0,
        check=check,
        note="PEFT's search is randomised already, and stops 1e-3 from the true space at 1/i",
    )


def components(in_: int, tokens: int) -> Case:
    """Two updates of the components of a layer's inputs, as EVA makes one for every batch."""
    n = 2 * RANK
    X = [part.contiguous() for part in fall(2 * tokens, in_)[0].split(tokens)]

    def theirs() -> Tensor:
        pca = TheirPCA(n_components=n, copy=True, lowrank=True, lowrank_seed=42)
        for rows in X:
            pca.partial_fit(rows)
        return pca.components_

    def mine() -> Tensor:
        pca = IncrementalPCA(n)
        for rows in X:
            pca.update(rows)
        return pca.components.directions

    def check(found: Tensor, other: Tensor) -> float:
        exact = TheirPCA(n_components=n)
        for rows in X:
            exact.partial_fit(rows)
        return angle(found[:RANK], exact.components_[:RANK])

    return Case("data_inits", f"eva, 2 batches of {tokens} x {in_}", mine, theirs, goal=3.0, check=check, group="eva")
