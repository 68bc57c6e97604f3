"""Batches of random text of unequal lengths, for what is collected from a model, and how two factors are compared."""

import torch
from models_for_tests import VOCAB
from torch import Tensor

from lora_lab.batches import collate

LENGTHS = (9, 20, 14, 30, 11, 25, 18, 40)
TOKENS = sum(LENGTHS)
UNLABELLED = 3  # of each text, at its start


def batches(size: int) -> list[dict[str, Tensor]]:
    """The eight texts in batches of `size`, padded, always the same."""
    generator = torch.Generator().manual_seed(4)
    texts = [torch.randint(2, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    examples = [{"input_ids": text, "labels": [-100] * UNLABELLED + text[UNLABELLED:]} for text in texts]
    return [collate(examples[i : i + size]) for i in range(0, len(texts), size)]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖."""
    return (torch.linalg.vector_norm(ours - theirs) / torch.linalg.vector_norm(theirs)).item()


def aligned(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Their A and B with each component's sign as in ours: a singular vector has none of its own."""
    (A, B), (their_A, their_B) = ours, theirs
    return their_A * (A * their_A).sum(1).sign()[:, None], their_B * (B * their_B).sum(0).sign()
