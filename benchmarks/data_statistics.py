"""What CorDA, EVA and LoRA-GA collect from a model, ours beside PEFT's: the time, and the memory beside the model's."""

import math
import warnings
from collections.abc import Iterator

import peft
import torch
from peft.tuners.lora import corda as their_corda
from peft.tuners.lora import loraga as their_loraga
from peft.tuners.lora.config import CordaConfig, EvaConfig
from peft.tuners.lora.eva import get_eva_state_dict
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.timing import Case, device
from lora_lab.init.eva import eva_ranks
from lora_lab.init.statistics import input_components, input_covariances, mean_gradients

RANK, TAU = 16, 0.9
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def cases(quick: bool) -> Iterator[Case]:
    for width in (256,) if quick else (512, 1024):
        yield from of_a_model(width)
        yield components(2 * width, tokens=1024)


def of_a_model(width: int) -> Iterator[Case]:
    """Two decoder layers on samples of 256 tokens, in batches of four. For CorDA PEFT takes one at a time.

    As many samples as make a covariance of the widest input regular.
    """
    config = LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=2, num_attention_heads=8
    )
    model = LlamaForCausalLM(config).to(device()).eval()
    samples = 4 * math.ceil(config.intermediate_size / 1024)
    ids = torch.randint(256, (samples, 256), generator=torch.Generator().manual_seed(0)).to(device())
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    ones, fours = ([{k: v[i : i + n] for k, v in batch.items()} for i in range(0, samples, n)] for n in (1, 4))
    lora = peft.LoraConfig(r=RANK, target_modules=TARGETS, init_lora_weights="corda", corda_config=CordaConfig())

    def covariances() -> dict[str, Tensor]:
        their_corda.calib_cov_distribution(model, lora, lambda: [model(**one) for one in ones], None, None)
        return taken("covariance_matrix")

    def gradients() -> dict[str, Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its backward hooks look at inputs that need no gradient
            their_loraga.estimate_gradients(model, lora, lambda: [model(**some).loss.backward() for some in fours])
        return taken("_peft_loraga_grad")

    def taken(name: str) -> dict[str, Tensor]:
        """What PEFT has left on the layers."""
        return {path: vars(m).pop(name) for path, m in model.named_modules() if name in vars(m)}

    for name, collect, theirs in (
        ("covariances", input_covariances, covariances),
        ("gradients", mean_gradients, gradients),
    ):
        yield Case(
            topic="data_statistics",
            group=name,
            name=f"{name}, 2 layers {width} wide",
            ours=lambda collect=collect: collect(model, TARGETS, fours, progress=False),
            theirs=theirs,
            check=same,
            memory=True,
        )


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference, as a part of the norm of what is compared. AssertionError above 1e-4."""
    assert list(ours) == list(theirs)
    apart = max(((ours[path] - theirs[path]).norm() / theirs[path].norm()).item() for path in ours)
    assert apart <= 1e-4, f"{apart} apart"
    return apart


class Block(nn.Module):
    """The linear layers of a decoder layer, fed with inputs whose principal components are nearly single entries.

    In a random model the two largest entries of many components are nearly equal and opposite, so that the sign flips
    from batch to batch, and PEFT does not return.
    """

    def __init__(self, width: int):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))
        self.gate_proj, self.up_proj = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        flipped, shifted = x.flip(-1), x.roll(1, -1)
        attended = self.q_proj(x) + self.k_proj(x) + self.v_proj(x) + self.o_proj(flipped)
        return attended.sum() + (self.gate_proj(shifted) * self.up_proj(shifted)).sum()


def components(width: int, tokens: int) -> Case:
    """All of EVA up to the ranks, for six layers with three different inputs."""
    generator = torch.Generator().manual_seed(0)
    size = 1 / torch.arange(1, width + 1)
    data = [{"x": (torch.randn(tokens, width, generator=generator) * size).to(device())} for _ in range(4)]
    model, targets = Block(width).to(device()), TARGETS[:-1]
    settings = peft.LoraConfig(r=RANK, target_modules=targets, init_lora_weights="eva", eva_config=EvaConfig(tau=TAU))

    def theirs() -> dict[str, Tensor]:
        whole = {"prepare_model_inputs_fn": None, "prepare_layer_inputs_fn": lambda x, *_: x[0]}
        return get_eva_state_dict(model, data, settings, show_progress_bar=False, **whole)

    def check(found: dict, states: dict[str, Tensor]) -> float:
        ranks = eva_ranks({path: one.explained for path, one in found.items()}, RANK)
        assert ranks == {path: len(A) for path, A in states.items()}
        return max((1 - (found[path].directions[: len(A)] * A).sum(1).abs()).max().item() for path, A in states.items())

    return Case(
        topic="data_statistics",
        group="components",
        name=f"components, 6 layers {width} wide, {tokens} tokens",
        ours=lambda: input_components(model, targets, data, RANK, tau=TAU, progress=False),
        theirs=theirs,
        check=check,
        memory=True,
    )
