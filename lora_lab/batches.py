"""Examples in, batches out: which examples a step sees, and how they become tensors.

An example is {"input_ids": [int], "labels": [int]}, of equal length; a label of -100 is not to be predicted.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

IGNORE = -100  # label of tokens that the loss leaves out, by torch's convention


def batch_at(examples: Sequence, batch_size: int, seed: int, step: int) -> list:
    """The batch of step `step`: the epoch's own shuffle, cut into batches of `batch_size` (the last may be smaller)."""
    per_epoch = math.ceil(len(examples) / batch_size)
    epoch, position = divmod(step, per_epoch)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return [examples[i] for i in order[position * batch_size : (position + 1) * batch_size].tolist()]


def collate(batch: Sequence[dict], pad_id: int = 0, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad on the right to the longest: input_ids, attention_mask, labels, each (batch, length), int64."""
    length = max(len(example["input_ids"]) for example in batch)

    def padded(key: str, fill: int) -> Tensor:
        return torch.tensor([list(e[key]) + [fill] * (length - len(e[key])) for e in batch], device=device)

    mask = [[1] * len(e["input_ids"]) + [0] * (length - len(e["input_ids"])) for e in batch]
    return {
        "input_ids": padded("input_ids", pad_id),
        "attention_mask": torch.tensor(mask, device=device),
        "labels": padded("labels", IGNORE),
    }


def fingerprint(examples: Sequence[dict]) -> str:
    """A digest of the examples: a resumed run must see the same."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((list(example["input_ids"]), list(example["labels"]))).encode())
    return digest.hexdigest()
