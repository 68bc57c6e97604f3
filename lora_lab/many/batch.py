"""Another adapter for every row of a batch, in two batched products.

    y_r += Σᵢ wᵣᵢ sᵢ Bᵢ(Aᵢ x_r)        row r: its own adapter, its own mix, or none

Rows that want the same form a group; a group is cut into blocks of `size` rows. Each block has its Aₖ (rank, in), the
As of its mix one below the other, and its Bₖ (rank, out), transposed, with wᵣᵢ sᵢ in it; both are filled up with zeros
to the largest rank of the batch:

    Hₖ = Xₖ Aₖᵀ  (size·length, rank)        Yₖ += Hₖ Bₖ  (size·length, out)        all k at once

The stacks of Aₖ and Bₖ are made once for all batches of the same composition (`generate` sends one for each token).
Sources: Punica, Chen et al. 2023 (arXiv:2310.18547); S-LoRA, Sheng et al. 2023 (arXiv:2311.03285). Their kernels read
the factors where they lie, without the stack.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """What the rows of a batch use: (weight by name, the rows that use this mix) for each mix; rows count from 0.

    copies: `generate` may send every row so many times in a row (beams, several answers to one prompt).
    """

    groups: list[tuple[dict[str, float], list[int]]]
    copies: int = 1

    @property
    def number(self) -> int:
        return sum(len(members) for _, members in self.groups)


@dataclass(frozen=True, eq=False)
class Plan:
    """The work for `rows` in one layer. A (blocks, rank, in), B (blocks, rank, out); None: no row has an adapter here.

    Where the rows do not lie as the blocks want them, they are moved, or the factors are, whichever is less:
    places (blocks · size,): the row in each place of each block, some twice, to fill it; None: they lie right.
    place (rows,): one place of each row. block (rows,): the block of it.
    """

    rows: Rows
    A: Tensor | None = None
    B: Tensor | None = None
    places: Tensor | None = None
    place: Tensor | None = None
    block: Tensor | None = None


def blocks_of(groups: list[list[int]]) -> list[tuple[int, list[int]]]:
    """The groups of rows as blocks of equal length: (number of the group, its rows, the last repeated to fill up).

    With rows / groups as the length, there are at most 2 · groups blocks, and at most 2 · (rows + groups) places.
    """
    size = -(-sum(map(len, groups)) // len(groups))
    pieces = [(k, rows[i : i + size]) for k, rows in enumerate(groups) for i in range(0, len(rows), size)]
    return [(k, rows + rows[-1:] * (size - len(rows))) for k, rows in pieces]


@torch.inference_mode(False)  # what is made in a block without gradients may be used in one with
@torch.no_grad()
def plan_for(rows: Rows, slots: Mapping[str, Any], shape: tuple[int, int]) -> Plan:
    """The plan for a layer of this (out, in) with these slots (A, B and scale by the adapter's name)."""
    parts = [[(slots[name], w) for name, w in mix.items() if name in slots] for mix, _ in rows.groups]
    rank = max(sum(len(slot.A) for slot, _ in part) for part in parts)
    like = next(iter(slots.values())).A
    if not rank:
        return Plan(rows)
    # A row without an adapter here has factors of zeros: cheaper than taking it out of the batch.
    A, B = (like.new_zeros(len(parts), rank, width) for width in shape[::-1])
    for k, part in enumerate(parts):
        start = 0
        for slot, weight in part:
            end = start + len(slot.A)
            A[k, start:end] = slot.A
            torch.mul(slot.B.T, weight * slot.scale, out=B[k, start:end])
            start = end
    blocks = blocks_of([members for _, members in rows.groups])
    group = [k for k, _ in blocks]
    if group != list(range(len(parts))):
        A, B = (stack.index_select(0, torch.tensor(group, device=like.device)) for stack in (A, B))
    places = [row for _, members in blocks for row in members]
    if places == list(range(rows.number)):
        return Plan(rows, A, B)
    where = {row: place for place, row in enumerate(places)}
    place = torch.tensor([where[row] for row in range(rows.number)], device=like.device)
    block = place // (len(places) // len(blocks))
    return Plan(rows, A, B, torch.tensor(places, device=like.device), place, block)


def add_rows_(y: Tensor, x: Tensor, plan: Plan) -> Tensor:
    """y (rows, ..., out) += what each row's adapters make of x (rows, ..., in), in place.

    Raises ValueError unless the first axis counts the rows (or rows · copies): with tokens flattened into it, as some
    mixtures of experts do, nothing says which row a token is of.
    """
    number, copies = plan.rows.number, plan.rows.copies
    if x.ndim < 2 or len(x) not in (number, number * copies):
        times = f", {copies} copies of each," if copies > 1 else ""
        raise ValueError(
            f"adapters were given for {number} rows{times} but this layer got {tuple(x.shape)}: the first axis must be "
            f"the batch (a layer that sees flattened tokens cannot be used with rows)"
        )
    if plan.A is None:
        return y
    y = y if y.is_contiguous() else y.contiguous()
    x_rows, y_rows = x.reshape(number, -1, x.shape[-1]), y.view(number, -1, y.shape[-1])
    A, B, length, rank = plan.A, plan.B, x_rows.shape[1], plan.A.shape[1]
    if plan.places is not None and length < rank:
        hidden = _product(x_rows.index_select(0, plan.places), A)
        update = torch.bmm(hidden, B).view(-1, length, y.shape[-1])
        y_rows.add_(update.index_select(0, plan.place))
        return y
    if plan.places is not None:  # a row has more vectors than the factors: these are copied to each, for the moment
        A, B = A.index_select(0, plan.block), B.index_select(0, plan.block)
    hidden, y_blocks = _product(x_rows, A), y_rows.view(len(A), -1, y.shape[-1])
    if y.dtype == hidden.dtype == B.dtype:
        y_blocks.baddbmm_(hidden, B)
    else:
        y_blocks.add_(torch.bmm(hidden, B))
    return y


def _product(rows: Tensor, A: Tensor) -> Tensor:
    """Xₖ Aₖᵀ (blocks, size · length, rank) of rows (blocks · size, length, in)."""
    return torch.bmm(rows.reshape(len(A), -1, rows.shape[-1]).to(A.dtype), A.transpose(1, 2))
