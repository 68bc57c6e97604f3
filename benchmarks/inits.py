"""PiSSA, OLoRA and MiCA on single layers: from the weight to A, B and the shifted base, ours beside PEFT's own methods.

Two kinds of weight. "trained" is what training leaves: noise, and above it some directions whose sizes fall like 1/√i.
"random" is noise alone, as in a new layer: without a gap in its spectrum it takes more products. The difference in the
table is the largest principal angle between the space that our B spans and that of PEFT's, both in fp32.
"""

from collections.abc import Callable, Iterator

import peft
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.timing import Case, device
from lora_lab.init.mica import mica_factors
from lora_lab.init.olora import olora_factors
from lora_lab.init.pissa import pissa_factors
from lora_lab.spectrum import principal_angles

RANK, ALPHA = 16, 24
ANGLE = 1e-3
QUICK = [(1024, 1024), (2816, 1024)]
SQUARE = [(1024, 1024), (2048, 2048), (4096, 4096)]
MLP = [(2816, 1024), (1024, 2816), (5632, 2048), (2048, 5632), (11008, 4096), (4096, 11008)]
LARGEST_SVD = 4096**3  # PEFT's SVD of more than this takes minutes a call on a CPU
FACTORS = {"pissa": pissa_factors, "olora": olora_factors, "mica": mica_factors}


def cases(quick: bool) -> Iterator[Case]:
    for name in FACTORS:
        for out, in_ in QUICK if quick else SQUARE + MLP:
            if name == "olora" or out * in_ * min(out, in_) <= LARGEST_SVD or device().type == "cuda":
                yield case(name, trained(out, in_), "trained", goal=10.0)
    for name in ("pissa", "mica"):  # a QR does not look at the spectrum
        for out, in_ in QUICK[:1] if quick else [*SQUARE[:2], *MLP[:2]]:
            yield case(name, normal(out, in_), "random")


def normal(out: int, in_: int, seed: int = 0) -> Tensor:
    """Noise whose largest singular value is about 1."""
    noise = torch.randn(out, in_, generator=torch.Generator().manual_seed(seed))
    return (noise / (out**0.5 + in_**0.5)).to(device())


def trained(out: int, in_: int) -> Tensor:
    """Noise and, up to six times as large, 64 directions of sizes that fall like 1/√i: 36 of them above the noise."""
    U, V = (torch.linalg.qr(normal(n, 64, seed=n)).Q for n in (out, in_))
    sizes = 6 * torch.arange(1.0, 65.0, device=device()) ** -0.5
    return normal(out, in_) + U * sizes @ V.T


def case(name: str, W: Tensor, kind: str, goal: float | None = None) -> Case:
    out, in_ = W.shape
    return Case(
        topic="inits",
        group=f"{name}, {kind}",
        name=f"{name}, {kind} {out} x {in_}",
        setup=lambda: layers(W),
        ours=lambda argument: ours(name, argument[0]),
        theirs=lambda argument: theirs(name, argument[1]),
        goal=goal,
        check=check,
        floor=floor(name, out >= 2 * in_ or in_ >= 2 * out),
    )


def layers(W: Tensor) -> tuple[Tensor, LoraLayer]:
    """The weight, and PEFT's wrapper around a layer with it, whose adapter is not yet what the init makes it."""
    linear = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(W.clone())
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"])
    return W.clone(), peft.get_peft_model(nn.Sequential(linear), config).base_model.model[0]


@torch.no_grad()
def ours(name: str, W: Tensor) -> tuple[Tensor, Tensor]:
    A, B = FACTORS[name](W, RANK, ALPHA / RANK)
    if name != "mica":
        W.addmm_(B, A, alpha=-ALPHA / RANK)
    return A, B


def theirs(name: str, layer: LoraLayer) -> LoraLayer:
    init = getattr(layer, f"{name}_init")
    init("default", name) if name == "pissa" else init("default")
    return layer


def check(mine: tuple[Tensor, Tensor], his: LoraLayer) -> float:
    angle = principal_angles(mine[1].T, his.lora_B["default"].weight.detach().T).max().item()
    assert angle < ANGLE, f"the largest angle is {angle:.1e}, above {ANGLE}"
    return angle


def floor(name: str, far_from_square: bool) -> Callable | None:
    """What cannot be left out: for MiCA a factorization of the whole weight, for OLoRA one product and the shift."""

    @torch.no_grad()
    def factorization(argument: tuple) -> Tensor:
        W = argument[0] if argument[0].shape[0] < argument[0].shape[1] else argument[0].T
        return torch.linalg.cholesky_ex(W @ W.T)[0] if far_from_square else torch.geqrf(W.T)[0]

    @torch.no_grad()
    def one_product(argument: tuple) -> Tensor:
        W = argument[0]
        A, B = W[:, :RANK].T @ W, W[:, :RANK].contiguous()
        return W.addmm_(B, A, alpha=-ALPHA / RANK)

    return {"mica": factorization, "olora": one_product}.get(name)
