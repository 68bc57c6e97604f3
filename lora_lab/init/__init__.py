"""Where A and B start. An init is a function `(weight (out, in), rank, scale) -> (A (rank, in), B (out, rank))`."""

from lora_lab.init.default import default_factors

__all__ = ["default_factors"]
