"""θ = θ0 + P z: train d numbers instead of D.   θ0 (D,) frozen; z (d,) trained, from 0; P (D, d) random, PᵀP = I.

All weights move, but only along d random directions, the columns of P. The smallest d that still learns a task is its
intrinsic dimension (Li et al. 2018, arXiv:1804.08838; for fine-tuning Aghajanyan et al. 2020, arXiv:2012.13255).

A dense P is out of reach: for D = 1.5 million and d = 1,000 it takes 6 GB. Here each weight belongs to one random
column, with a random sign: a row of P has one entry ±1/√n, where n is the number of weights in its column (D/d, rounded
up or down). Columns that share no weight are exactly orthogonal, P takes 8 bytes a weight for any d, and P z and Pᵀ g
are one pass over the weights each. At d = D, P is a signed permutation: as free as training θ itself.
Li et al. 2018 replace the dense P by sparse or structured ones too. This form is that of Li et al. 2025 (Uni-LoRA,
arXiv:2506.00799) plus the signs, without which a column could only push all its weights the same way.
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lora_lab.targets import find_targets
from lora_lab.train import History, train


class Projection:
    """P (size, dimension) of the module's docstring, fixed by its seed, the same on every device.

    columns (size,) int32 and entries (size,) hold the one column of each row and its ±1/√n there.
    Raises ValueError unless 1 <= dimension <= size.
    """

    def __init__(self, size: int, dimension: int, seed: int = 0, device=None, dtype: torch.dtype = torch.float32):
        if not 1 <= dimension <= size:
            raise ValueError(f"dimension {dimension} is outside 1 to {size}, the number of weights")
        generator = torch.Generator().manual_seed(seed)
        columns = torch.randperm(size, generator=generator) % dimension  # shares that differ by one weight at most
        signs = torch.randint(2, (size,), generator=generator) * 2 - 1
        counts = torch.bincount(columns, minlength=dimension).to(dtype)
        self.size, self.dimension = size, dimension
        self.columns = columns.to(device, torch.int32)
        self.entries = (signs / counts.sqrt()[columns]).to(device, dtype)

    def expand(self, z: Tensor) -> Tensor:
        """P z: (dimension,) -> (size,). Differentiable: the gradient of z is `reduce` of the result's gradient."""
        return z.index_select(0, self.columns) * self.entries

    def reduce(self, g: Tensor) -> Tensor:
        """Pᵀ g: (size,) -> (dimension,)."""
        return g.new_zeros(self.dimension).index_add_(0, self.columns, g * self.entries)

    def dense(self) -> Tensor:
        """P itself, (size, dimension): for looking at a small one."""
        return nn.functional.one_hot(self.columns.long(), self.dimension) * self.entries[:, None]


class SubspaceModel(nn.Module):
    """A model whose only trainable parameter is z (dimension,): its weights are θ0 + P z, its call is the model's.

    Args:
        model: kept, not copied, and frozen. Its own tensors stay θ0 until `release`.
        dimension: d, from 1 to the number D of chosen weights.
        seed: of P.
        targets: None for every parameter, or the layers whose weight matrices are chosen, as in `inject`.
    """

    def __init__(self, model: nn.Module, dimension: int, *, seed: int = 0, targets: str | Iterable[str] | None = None):
        super().__init__()
        chosen = _chosen(model, targets)
        first = next(iter(chosen.values()))
        dtype = torch.promote_types(first.dtype, torch.float32)
        size = sum(p.numel() for p in chosen.values())
        self.projection = Projection(size, dimension, seed, first.device, dtype)
        self.names = list(chosen)
        self.trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        self.model = model.requires_grad_(False)
        self.z = nn.Parameter(torch.zeros(dimension, dtype=dtype, device=first.device))
        self.training = model.training

    def weights(self) -> dict[str, Tensor]:
        """θ0 + P z, cut into the chosen parameters, each in its own shape and type."""
        parameters = {name: self.model.get_parameter(name) for name in self.names}
        pieces = self.projection.expand(self.z).split([p.numel() for p in parameters.values()])
        moved = zip(parameters.items(), pieces, strict=True)
        return {name: (p + piece.view_as(p)).to(p.dtype) for (name, p), piece in moved}

    def forward(self, *args, **kwargs):
        return functional_call(self.model, self.weights(), args, kwargs)

    @torch.no_grad()
    def release(self, keep: bool = True) -> nn.Module:
        """The model itself again, trainable where it was, with θ0 + P z written into it (`keep`) or as it was."""
        if keep:
            for name, weight in self.weights().items():
                self.model.get_parameter(name).copy_(weight)
            self.z.zero_()  # θ0 has moved; a second release must not add P z again
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.trainable[name])
        return self.model


def train_in_subspace(
    model: nn.Module,
    examples: Sequence[dict],
    dimension: int,
    *,
    steps: int,
    lr: float | None = None,
    seed: int = 0,
    targets: str | Iterable[str] | None = None,
    restore: bool = False,
    **options,
) -> History:
    """Train `model` in place, inside a random subspace of this dimension, and return what happened.

    lr: peak rate of Adam on z; None takes `default_lr`. seed: of P and of the batches. restore: put the weights back
    to θ0 in the end. examples, steps and options: as in `lora_lab.train.train`. The mode, and what can be trained, are
    left as found; after an error the weights are, too. Raises what `train` and `Projection` raise.
    """
    subspace = SubspaceModel(model, dimension, seed=seed, targets=targets)
    lr = default_lr(subspace.projection.size, dimension) if lr is None else lr
    try:
        history = train(subspace, examples, steps=steps, lr=lr, seed=seed, **options)
    except BaseException:
        subspace.release(keep=False)
        raise
    subspace.release(keep=not restore)
    return history


def default_lr(size: int, dimension: int, per_weight: float = 0.02) -> float:
    """per_weight · √(D/d): Adam moves an entry of z by about its rate, so each weight by the rate times √(d/D).

    On the course's base and support desk one per_weight served every d from 16 to 4,096 (60 steps; 0.005 was too slow,
    0.05 no better, 0.1 worse). Near d = D take the rate of plain training: there every step hits the gradient whole.
    """
    return per_weight * math.sqrt(size / dimension)


def _chosen(model: nn.Module, targets: str | Iterable[str] | None) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    if targets is not None:
        wanted = {id(layer.weight) for layer in find_targets(model, targets).values()}
        parameters = {name: p for name, p in parameters.items() if id(p) in wanted}
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters")
    return parameters
