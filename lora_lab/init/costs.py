"""What it takes to set an init up: memory beside the model, arithmetic, and data.

For each adapted weight (out, in), n = min(out, in), m = max(out, in), rank r, T tokens of data, P parameters in all:

    init               arithmetic, FLOPs                                memory, bytes of fp32
    default, ...       (out + in) r random numbers                      none
    pissa, loftq       products W X with r + max(16, r/2) columns       one weight's workspace (loftq: its codes too)
    olora              2 out r² + 2 out in r                            one weight's workspace
    mica               2 m n² + 4/3 n³, and products                    one weight's workspace
    corda              2 T P, and 2 T in² + 1/3 in³ + 2 out in²         a covariance (in, in) for each different input
    eva                2 T P, and products of T x in                    2r directions (in) for each different input
    lora_ga            6 T P, and products                              a gradient (out, in) for each weight

PEFT takes a full SVD for pissa, mica and corda (6 m n² + 20 n³; Golub & Van Loan 2013, section 8.6.3), and a covariance
for every layer, also where several read the same input.
"""

from collections.abc import Mapping
from typing import NamedTuple

from lora_lab.init.check import check_rank

Shapes = Mapping[str, tuple[int, int]]
FP32 = 4
# How often a weight is multiplied with a block until its leading singular vectors stand to rounding: 12 to 40 on the
# weights of the course's base and on random ones with decaying spectra. More on flat ones.
PRODUCTS = 40


class Cost(NamedTuple):
    """flops: arithmetic of the set-up. bytes: memory beside the model. tokens: data that it should see."""

    flops: float
    bytes: float
    tokens: int


def full_svd_flops(out: int, in_: int) -> float:
    """Of a thin SVD with both sides: 6 m n² + 20 n³."""
    n, m = sorted((out, in_))
    return 6 * m * n**2 + 20 * n**3


def top_flops(out: int, in_: int, rank: int) -> float:
    """Of the leading `rank` singular vectors by repeated products."""
    return 2.0 * out * in_ * (rank + max(16, rank // 2)) * PRODUCTS


def setup_cost(name: str, shapes: Shapes, rank: int, parameters: int | None = None) -> Cost:
    """The set-up of the init `name` for the weights of these `shapes` (out, in), by path.

    parameters: of the whole model, for the forward passes that a data-driven init makes (None: the weights').
    tokens: CorDA 128 for each input of the layer (its authors' advice, here for the median layer), EVA 2·rank at the
    least and usually a few batches, LoRA-GA a few batches.
    Raises ValueError for an unknown name, no shapes, or a rank above the smallest min(out, in).
    """
    from lora_lab.init.table import INITS

    if name not in INITS:
        raise ValueError(f"unknown init {name!r}: one of {', '.join(INITS)}")
    if not shapes:
        raise ValueError("shapes is empty: name at least one weight (out, in)")
    check_rank(rank, min(min(shape) for shape in shapes.values()))
    sizes = list(shapes.values())
    weights = sum(out * in_ for out, in_ in sizes)
    parameters = parameters or weights
    draws = sum((out + in_) * rank for out, in_ in sizes)
    top = sum(top_flops(out, in_, rank) for out, in_ in sizes)
    largest = max(out * in_ for out, in_ in sizes) * FP32
    median = sorted(in_ for _, in_ in sizes)[len(sizes) // 2]
    tokens = {"corda": 128 * median, "eva": max(2 * rank, 4096), "lora_ga": 4096}.get(name, 0)
    if name in ("default", "random", "gaussian", "orthogonal"):
        return Cost(draws, 0, 0)
    if name in ("pissa", "loftq"):
        return Cost(top, 2 * largest, 0)
    if name == "olora":
        return Cost(sum(2 * out * rank**2 + 2 * out * in_ * rank for out, in_ in sizes), largest, 0)
    if name == "mica":
        inverse = sum(2 * max(s) * min(s) ** 2 + 4 / 3 * min(s) ** 3 for s in sizes)
        return Cost(inverse + top, 3 * largest, 0)
    if name == "corda":
        inputs = distinct_inputs(shapes)
        work = sum(2 * tokens * in_**2 for in_ in inputs) + sum(in_**3 / 3 + 2 * out * in_**2 for out, in_ in sizes)
        return Cost(2 * tokens * parameters + work + top, sum(in_**2 for in_ in inputs) * FP32 + 3 * largest, tokens)
    if name == "eva":
        inputs = distinct_inputs(shapes)
        work = sum(top_flops(tokens, in_, 2 * rank) for in_ in inputs)
        return Cost(2 * tokens * parameters + work, sum(2 * rank * in_ for in_ in inputs) * FP32, tokens)
    return Cost(6 * tokens * parameters + top, weights * FP32, tokens)


def distinct_inputs(shapes: Shapes) -> list[int]:
    """The widths of the different inputs: q, k and v read one, gate and up another.

    By name, where one is known to share; a layer of another name counts by itself.
    """
    sharing = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"w1", "w3"})
    inputs: dict[tuple[str, str], int] = {}
    for path, (_, in_) in shapes.items():
        parent, _, leaf = path.rpartition(".")
        group = next((min(names) for names in sharing if leaf in names), leaf)
        inputs[parent, group] = in_
    return list(inputs.values())
