"""GPUs as two numbers each, and what follows: where a run fits, how long it takes, what it costs.

    seconds = FLOPs / (peak · mfu)

mfu is the share of the peak that the matrix products reach (those that checkpointing repeats count too). It is an
assumption: 0.3 to 0.5 is usual for large models in half precision, small models and short batches reach less.
"""

import math
from numbers import Real
from typing import NamedTuple

import torch

GIB = 2**30


class Gpu(NamedTuple):
    """memory: bytes that torch reports as its total capacity (a little below the nominal size). tflops: peak of
    matrix products in fp16, and in bf16 where `bf16` says so, with sums in fp32 and without sparsity."""

    memory: int
    tflops: float
    bf16: bool = True


# Peaks: NVIDIA's data sheets and architecture white papers (dense: half of what is printed "with sparsity").
GPUS: dict[str, Gpu] = {
    "T4 16GB": Gpu(int(14.7 * GIB), 65.0, bf16=False),
    "V100 32GB": Gpu(int(31.5 * GIB), 125.0, bf16=False),
    "RTX 3090 24GB": Gpu(int(23.6 * GIB), 71.0),
    "RTX 4090 24GB": Gpu(int(23.6 * GIB), 165.2),
    "A100 40GB": Gpu(int(39.4 * GIB), 312.0),
    "L40S 48GB": Gpu(int(44.3 * GIB), 362.05),
    "A100 80GB": Gpu(int(79.1 * GIB), 312.0),
    "H100 80GB": Gpu(int(79.1 * GIB), 989.4),
    "H200 141GB": Gpu(int(139.7 * GIB), 989.4),
}
RESERVE = GIB  # for the CUDA context, cuBLAS and fragmentation: an assumption too


def fits(nbytes: int, dtype: torch.dtype = torch.bfloat16, reserve: int = RESERVE) -> dict[str, int]:
    """The GPUs of `GPUS` that hold `nbytes` and `reserve` more, by name, with the bytes left over; smallest first.

    GPUs that cannot compute in `dtype` (bf16 before Ampere) are left out.
    Raises ValueError for negative or infinite sizes.
    """
    for name, value in (("nbytes", nbytes), ("reserve", reserve)):
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    able = {name: gpu for name, gpu in GPUS.items() if gpu.bf16 or dtype != torch.bfloat16}
    spare = {name: int(gpu.memory - reserve - nbytes) for name, gpu in able.items()}
    return {name: left for name, left in sorted(spare.items(), key=lambda pair: GPUS[pair[0]].memory) if left >= 0}


def seconds(flops: float, gpu: str, mfu: float = 0.4) -> float:
    """Time for so many FLOPs in half precision. Raises ValueError for an unknown GPU or an mfu outside (0, 1]."""
    if gpu not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(GPUS)}, got {gpu!r}")
    if isinstance(mfu, bool) or not isinstance(mfu, Real) or not 0 < mfu <= 1:
        raise ValueError(f"mfu is a share of the peak, above 0 and at most 1, got {mfu!r}")
    if isinstance(flops, bool) or not isinstance(flops, Real) or not 0 <= flops < math.inf:
        raise ValueError(f"flops must be finite and not negative, got {flops!r}")
    return flops / (GPUS[gpu].tflops * 1e12 * mfu)
