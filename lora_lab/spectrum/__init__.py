"""What the singular values and vectors of a matrix say about it.

    W (out, in) = U diag(s) Vᵀ        U (out, k), s (k,) from large to small, V (in, k), k = min(out, in)

Questions about the size of an update take its singular values s (`size`); questions about directions take matrices
(`directions`, `intruders`); `updates` gets ΔW from two models, or the spectrum of s·BA without forming it. All of it
is measurement: nothing here carries gradients. fp64 is computed in fp64, every other type in fp32, on its own device.
"""

from lora_lab.spectrum.check import Values
from lora_lab.spectrum.directions import (
    Projections,
    amplification_factor,
    principal_angles,
    projections,
    random_similarity,
    random_similarity_grid,
    similarity_grid,
    subspace_similarity,
)
from lora_lab.spectrum.intruders import Intruders, intruder_dimensions
from lora_lab.spectrum.size import (
    effective_rank,
    energy,
    energy_rank,
    numerical_rank,
    random_low_rank,
    singular_values,
    stable_rank,
    truncate,
    truncation_error,
)
from lora_lab.spectrum.updates import delta_weights, factor_norm, factor_singular_values, factor_svd

__all__ = [
    "Intruders",
    "Projections",
    "Values",
    "amplification_factor",
    "delta_weights",
    "effective_rank",
    "energy",
    "energy_rank",
    "factor_norm",
    "factor_singular_values",
    "factor_svd",
    "intruder_dimensions",
    "numerical_rank",
    "principal_angles",
    "projections",
    "random_low_rank",
    "random_similarity",
    "random_similarity_grid",
    "similarity_grid",
    "singular_values",
    "stable_rank",
    "subspace_similarity",
    "truncate",
    "truncation_error",
]
