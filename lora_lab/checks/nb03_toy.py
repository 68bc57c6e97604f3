"""A small model with names that catch careless matching, for the checks 3.6 and 3.8."""

import torch
from torch import Tensor, nn

from .harness import Cases


class _Attention(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner, bias=False)
        self.v_proj = nn.Linear(width, inner, bias=False)
        self.qkv_proj = nn.Linear(width, inner)  # contains no q_proj, but ends in v_proj
        self.o_proj = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(torch.tanh(self.q_proj(x) * self.k_proj(x)) + self.v_proj(x) + self.qkv_proj(x))


class _Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = _Attention(width, inner)
        self.seq_proj = nn.Linear(width, width)  # ends in q_proj
        self.q_proj_gate = nn.Linear(width, width)  # starts with q_proj
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x) * torch.sigmoid(self.q_proj_gate(x)) + self.seq_proj(x)


class Toy(nn.Module):
    """Tokens (batch, length) -> (batch, length, vocabulary). Two blocks of attention and MLP, a norm, an embedding."""

    def __init__(self, cases: Cases) -> None:
        super().__init__()
        self.vocabulary = cases.integer(10, 16)
        width, inner = cases.different(9, 14, 2)
        self.gain = nn.Parameter(torch.ones(width))  # a parameter of the root itself
        self.embed = nn.Embedding(self.vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, inner) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.gain * self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def linears(self) -> dict[str, nn.Linear]:
        """Every linear layer by its path."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    def tokens(self, cases: Cases) -> Tensor:
        """A random input."""
        return torch.randint(self.vocabulary, (3, 5), generator=cases.generator)


class LowRank(nn.Module):
    """A LoRA layer of a class that no answer knows by name: .base, .A (rank, in), .B (out, rank), .scale."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        self.A = nn.Parameter(torch.empty(rank, base.in_features).uniform_(-1, 1) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.A.T @ self.B.T)


def is_wrapper(module: nn.Module) -> bool:
    """Whether a module looks like a LoRA layer: .base, .A and .B."""
    return all(hasattr(module, name) for name in ("base", "A", "B"))
