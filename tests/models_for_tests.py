"""Tiny models with random weights, and the helpers that every core test shares.

The Llama has grouped-query attention and no square projection except q and o, so that out != in almost everywhere.
"""

import contextlib
import copy
from collections.abc import Iterator

import peft
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_lab import History, inject, lora_layers, save_adapter, train

VOCAB = 64
RANK, ALPHA = 4, 10  # never equal: a scale of 1 would hide a missing scale
HALF = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, *HALF)


def seeded(build, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """The model that `build()` returns, the same for the same seed, in eval mode; the global state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().to(dtype).eval()


def llama(dtype=torch.float32, layers=2, hidden=32, tied=False, dropout=0.0) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=hidden + 16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        initializer_range=0.2,
        pad_token_id=0,
    )
    return seeded(lambda: LlamaForCausalLM(config), dtype)


def gpt2(dtype=torch.float32) -> GPT2LMHeadModel:
    sizes = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(**sizes, initializer_range=0.2, bos_token_id=1, eos_token_id=1)
    return seeded(lambda: GPT2LMHeadModel(config), dtype)


def neox(dtype=torch.float32) -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2
    )
    return seeded(lambda: GPTNeoXForCausalLM(config), dtype)


LANGUAGE_MODELS = {"llama": llama, "gpt2": gpt2, "neox": neox}


def linear(out: int, in_: int, bias=True, dtype=torch.float32, conv1d=False) -> nn.Module:
    """One linear layer with a random bias: `nn.Linear`, or `Conv1D`, which always has one."""

    def build() -> nn.Module:
        layer = Conv1D(out, in_) if conv1d else nn.Linear(in_, out, bias=bias)
        nn.init.normal_(layer.weight, std=in_**-0.5)
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
        return layer

    return seeded(build, dtype)


class Plain(nn.Module):
    """Names that nearly match, one module at two paths, two layers over one weight, and layers that are not linear."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.proj = nn.Linear(6, 9)
        self.my_proj = nn.Linear(9, 6)
        self.block = nn.ModuleDict({"proj": nn.Linear(6, 6, bias=False), "norm": nn.LayerNorm(6)})
        self.again = self.block["proj"]
        self.tied_a, self.tied_b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied_b.weight = self.tied_a.weight
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.proj.bias.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.my_proj(self.proj(self.embed(ids)).relu())
        x = self.again(self.block["norm"](self.block["proj"](x)))
        return self.tied_b(self.tied_a(self.attention(x, x, x)[0]))


def plain() -> Plain:
    return seeded(Plain, torch.float32)


def token_ids(batch=3, length=7) -> Tensor:
    return torch.randint(2, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


@torch.no_grad()
def fill(model: nn.Module, seed: int = 3) -> nn.Module:
    """Random A and B, as if trained: with B = 0 most mistakes would not show."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        for factor in (layer.A, layer.B):
            factor.copy_(0.3 * torch.randn(factor.shape, generator=generator, dtype=torch.float64))
    return model


def small(targets=("q_proj", "v_proj", "up_proj"), rank=RANK, alpha=ALPHA, dropout=0.0) -> nn.Module:
    """One decoder layer, freshly injected, always the same: what the tests of training train."""
    return seeded(lambda: inject(llama(layers=1), targets, rank, alpha, dropout), torch.float32)


def saved(folder, build=llama, targets=("q_proj", "down_proj"), **settings) -> nn.Module:
    """An adapted model whose adapter is saved in `folder`."""
    model = fill(inject(build(), targets, RANK, ALPHA, **settings))
    save_adapter(model, folder)
    return model


def peft_twin(base: nn.Module, targets, rank=RANK, alpha=ALPHA, dropout=0.0, rslora=False, **more) -> peft.PeftModel:
    """PEFT's LoRA on a copy of `base`."""
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=dropout, use_rslora=rslora, **more
    )
    config.fan_in_fan_out = any(isinstance(module, Conv1D) for module in base.modules())
    return peft.get_peft_model(copy.deepcopy(base), config)


def peft_factors(twin: peft.PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """(A, B) of every layer that PEFT adapted, by its path in the base model."""
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in twin.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@torch.no_grad()
def copy_factors(ours: nn.Module, twin: peft.PeftModel) -> None:
    theirs = peft_factors(twin)
    for name, layer in lora_layers(ours).items():
        theirs[name][0].copy_(layer.A)
        theirs[name][1].copy_(layer.B)


def fingerprint(model: nn.Module) -> tuple:
    """Everything about a model that a refused call must leave alone: objects, flags, modes and every bit."""
    return (
        [(name, id(m), m.training, sorted(m.__dict__)) for name, m in model.named_modules(remove_duplicate=False)],
        [(name, id(p), p.requires_grad, p.dtype) for name, p in model.named_parameters(remove_duplicate=False)],
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
    )


@contextlib.contextmanager
def unchanged(model: nn.Module, rng: bool = True) -> Iterator[None]:
    """Assert that the block leaves `model` alone to the bit and, with `rng`, the global random state."""
    before, random_state = fingerprint(model), torch.get_rng_state()
    yield
    assert_unchanged(model, before)
    assert not rng or torch.equal(torch.get_rng_state(), random_state)


def assert_unchanged(model: nn.Module, before: tuple) -> None:
    modules, parameters, state = before
    modules_now, parameters_now, state_now = fingerprint(model)
    assert modules_now == modules
    assert parameters_now == parameters
    assert state_now.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(state_now[name], tensor, rtol=0, atol=0, equal_nan=True)


TRAIN_STEPS = 12
TRAIN_EXAMPLES = [  # of 7 to 9 tokens, the first two without a label
    {"input_ids": list(range(2 + i, 9 + i + i % 3)), "labels": [-100] * 2 + list(range(4 + i, 9 + i + i % 3))}
    for i in range(10)
]


def run(model: nn.Module, examples=TRAIN_EXAMPLES, **more) -> History:
    """`train` with settings that differ from every default."""
    settings = {"steps": TRAIN_STEPS, "lr": 0.02, "batch_size": 4, "warmup": 0.25, "weight_decay": 0.1}
    return train(model, examples, **(settings | {"progress": False} | more))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    state = state_of(other)
    assert all(torch.equal(p, state[name]) for name, p in model.named_parameters())
