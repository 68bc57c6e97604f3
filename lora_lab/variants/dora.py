"""y = b + (m / n)∘(V x),   V = W + s·BA,   n = the length of each row of V.   W, V (out, in); m, n, b (out).

DoRA: LoRA adapts the direction of each row of the weight, and its length m is a parameter of its own. m starts as n,
so that the layer starts as plain LoRA does. n follows A and B, but is a constant in the gradient.
Source: Liu et al. 2024 (arXiv:2402.09353), equation 5 and section 4.3.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_lab.base import is_quantized, oriented_weight, weight_shape
from lora_lab.init import Init, NamedInit, Start, resolve
from lora_lab.layer import LoRALinear
from lora_lab.product import low_rank_blocks


class DoRALinear(LoRALinear):
    """A frozen linear layer with a trainable low-rank update of its directions, and trainable lengths `magnitude`.

    `inject(..., layer=DoRALinear)` puts it into a model; the arguments are those of `LoRALinear`. `magnitude` (out,)
    is fp32 as A and B are. With dropout, all but the layer's old output W x + b is computed from the dropped x, as in
    PEFT: y = W x + b + (m / n - 1)∘W x' + (m / n)∘s·BA x'.

    Where PEFT differs: beside an fp16 or bf16 base it rounds m to that dtype, so that m / n is not 1 at the start; with
    dropout it holds an fp32 copy of such a base for the backward pass; and a row of zeros gives NaN. Here it gives b.

    Raises ValueError also for `fused`, and for an init that freezes a factor (MiCA).
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        init: Init | str | bool = True,
        fused: bool = False,
    ):
        if fused:
            raise ValueError("fused=True: DoRA has no fused form, only LoRALinear has")
        super().__init__(base, rank, alpha, dropout, rslora, _trains_both(resolve(init)))
        self.magnitude = nn.Parameter(self.row_norms())
        # n of the last `fold`: W' = (m / n)∘V alone does not tell it.
        self.register_buffer("folded_norms", None, persistent=False)

    @torch.no_grad()
    def base_changed(self) -> None:
        """Start m anew, at the row lengths of V with the base as it is now (after it was quantized, say)."""
        self.magnitude.copy_(self.row_norms())

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """n (out,), in the dtype of A. Only a block of V is formed at a time."""
        weight = oriented_weight(self.base)
        if torch.compiler.is_compiling():  # which would unroll the loop, and needs no blocks
            A, B = self.factors()
            with torch.autocast(A.device.type, enabled=False):
                return torch.linalg.norm(weight + self.scale * (B @ A), dim=1)
        return torch.cat([torch.linalg.norm(update.add_(weight[rows]), dim=1) for rows, update in self._updates()])

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> y (..., out), in the dtype that the base layer returns."""
        if self.merged:
            return self.base(x)
        A, B = self.factors()
        y = self.base(x)
        x = x.to(A.dtype)
        if self.dropout_is_on:
            x = self.dropout(x)
            straight = self._without_bias(x.to(y.dtype))
        else:
            straight = y if self.base.bias is None else y - self.base.bias
        ratio = self._ratio(self.row_norms())
        # y = b + straight already: what is missing to b + ratio·(straight + update).
        missing = (ratio - 1) * straight + ratio * F.linear(F.linear(x, A), B) * self.scale
        return (y + missing).to(y.dtype)

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """ΔW = (m / n)∘V - W (out, in), in fp32 or better."""
        weight = oriented_weight(self.base)
        other = torch.empty_like(weight, dtype=self.A.dtype)
        return weight - self.unfold(weight, other) if self.merged else self.fold(weight, other) - weight

    @torch.no_grad()
    def fold(self, weight: Tensor, out: Tensor) -> Tensor:
        """Write W' = (m / n)∘(W + s·BA) (out, in), computed in fp32 or better and rounded once, to `out`, which may be
        `weight`. Keeps n for `unfold`."""
        norms = torch.empty_like(self.magnitude)
        for rows, update in self._updates():
            directed = update.add_(weight[rows])
            norms[rows] = torch.linalg.norm(directed, dim=1)
            out[rows] = directed.mul_(self._ratio(norms, rows)[:, None])
        self.folded_norms = norms
        return out

    @torch.no_grad()
    def unfold(self, weight: Tensor, out: Tensor) -> Tensor:
        """The inverse of the last `fold`, to rounding: W = (n / m)∘W' - s·BA.

        Raises ValueError if nothing was folded, or if some m is 0 where n is not: the direction of that row is gone.
        """
        self.refuse_unfold()
        for rows, update in self._updates():
            ratio = self._ratio(self.folded_norms, rows)[:, None]
            out[rows] = weight[rows] / ratio.masked_fill(ratio == 0, 1) - update
        return out

    @torch.no_grad()
    def refuse_unfold(self) -> None:
        """Raise what `unfold` raises."""
        if self.folded_norms is None:
            raise ValueError("nothing was folded: the lengths n of the rows before that are not known")
        gone = (self.magnitude == 0) & (self.folded_norms > 0)
        if gone.any():
            raise ValueError(f"magnitude is 0 in {int(gone.sum())} rows (first: {int(gone.nonzero()[0])}): W is gone")

    @torch.no_grad()
    def fold_bound(self, largest: Tensor) -> Tensor:
        """A number that no entry of W' exceeds: its rows have the lengths |m|. Not finite if anything is not."""
        return self.magnitude.abs().max() + 0 * super().fold_bound(largest)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, magnitude=({weight_shape(self.base)[0]},)"

    def _ratio(self, norms: Tensor, rows: slice = slice(None)) -> Tensor:
        """m / n (out,); in a row of zeros, which has no direction, m."""
        return self.magnitude[rows] / norms[rows].masked_fill(norms[rows] == 0, 1)

    def _updates(self) -> Iterator[tuple[slice, Tensor]]:
        """s·BA in blocks of rows."""
        return low_rank_blocks(*self.factors(), self.scale)

    def _without_bias(self, x: Tensor) -> Tensor:
        """W x."""
        if is_quantized(self.base):
            # Its own forward holds no dequantized copy for the backward pass.
            y = self.base(x)
            return y if self.base.bias is None else y - self.base.bias
        return F.linear(x, oriented_weight(self.base))


def _trains_both(init: Init) -> Init:
    def checked(weight: Tensor, rank: int, scale: float) -> Start:
        start = Start(*init(weight, rank, scale))
        refuse(start.trains)
        return start

    def refuse(trains: str) -> None:
        if trains != "AB":
            name = getattr(init, "name", getattr(init, "__name__", "init"))
            raise ValueError(f"DoRA trains A and B, but the init {name!r} trains {trains} alone")

    if isinstance(init, NamedInit):
        refuse(init.recipe.trains)  # before the work is done
    return checked
