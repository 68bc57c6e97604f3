"""Batches of random text of unequal lengths, for what is collected from a model, and how two factors are compared."""

import copy

import peft
import torch
from models_for_tests import ALPHA, RANK, VOCAB, logits, peft_factors
from torch import Tensor, nn

from lora_lab import inject, lora_layers
from lora_lab.base import oriented_weight
from lora_lab.batches import collate
from lora_lab.init import named

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}
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


def adapted(name: str, base: nn.Module, statistics: dict, argument: str, rslora=False, **options) -> nn.Module:
    """A copy of `base` with the init of that name, each layer with its own statistic."""
    init = {path: named(name, **{argument: statistics[path]}, **options) for path in statistics}
    return inject(copy.deepcopy(base), list(statistics), RANK, ALPHA, rslora=rslora, init=init)


def assert_same_start(ours: nn.Module, twin: peft.PeftModel, base: nn.Module, tolerance: float) -> None:
    """The factors up to sign, what they leave of the base, and the answers, which are those of the base."""
    theirs = peft_factors(twin)
    assert list(lora_layers(ours)) == list(theirs)
    for path, layer in lora_layers(ours).items():
        A, B = aligned((layer.A, layer.B), theirs[path])
        assert difference(layer.A, A) < tolerance, path
        assert difference(layer.B, B) < tolerance, path
        W = oriented_weight(base.get_submodule(path))
        assert difference(oriented_weight(layer.base), W - layer.scale * B @ A) < tolerance, path
        assert difference(oriented_weight(layer.base), W) > 0.01, path
    assert difference(logits(ours), logits(twin)) < 1e-5
    assert difference(logits(ours), logits(base)) < 1e-5
