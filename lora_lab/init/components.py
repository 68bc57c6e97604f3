"""The principal components of what goes into the layers of a model, found while it runs on batches. For EVA.

    X (m, in) all inputs of a layer, one row a token, μ their mean.      U diag(S) V = svd(X - μ),  V (n, in)

The inputs are not kept: n directions, n singular values and the mean stand for all rows so far.
Source: Ross et al. 2008, "Incremental learning for robust visual tracking", as in scikit-learn and PEFT.
"""

import math
from collections import Counter
from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor, nn

from lora_lab.base import weight_shape
from lora_lab.init.check import check_rank
from lora_lab.init.collect import Collected, Run, Runner, Targets, check_count, layers_of, lent, refuse_too_few
from lora_lab.init.eva import Components, eva_ranks, most_components, positive
from lora_lab.init.layer_inputs import LayerInputs, token_mask, tokens_of
from lora_lab.lowrank import top_svd

FLIPS = 10  # of a sign, in a row, after which it does not count
TOLERANCE = 1e-2  # bounds the angle of each direction to the true one; measured, it is 3e-4 and less


@torch.no_grad()
def input_components(
    model: nn.Module,
    targets: Targets,
    batches: Iterable,
    rank: int,
    *,
    rho: float = 2.0,
    tau: float = 0.99,
    labelled: bool = True,
    passes: int = 100,
    run: Run | None = None,
    share: bool = True,
    progress: bool = True,
) -> Collected:
    """The first round(rank·rho) principal components of the inputs of each target, as `Components`.

    They are updated batch by batch, going over the batches again if need be, until those that `eva_ranks` would take
    have settled: until the cosine between each of them and itself one update before is at least tau. PEFT goes on for
    ever if that never comes, as where a direction's sign flips at every update; here the sign does not count any more
    after 10 flips in a row. PEFT also skips a batch of fewer tokens than components; here they are put together.

    Args: as in `input_covariances`, and
        rank, rho: of the adapter, and how many times that a layer may get. No layer gets more than min(out, in).
        labelled: leave out tokens whose label is -100, as well as padding.
        passes: how often to go over the batches at most (an iterator can be read but once).

    Raises ValueError if the batches hold fewer tokens than components, if these have not settled after all passes, or
    if an input is not finite or a layer is never reached.
    """
    layers = layers_of(model, targets)
    most = most_components(rank, rho)
    check_rank(rank, min(min(weight_shape(layer)) for layer in layers.values()))
    check_count(passes, "passes")
    if isinstance(tau, bool) or not isinstance(tau, Real) or not 0 <= tau <= 1:
        raise ValueError(f"tau is a cosine, 0 to 1, got {tau!r}")
    runner = Runner(model, batches, run, progress)
    sought = _Sought(layers, rank, most, rho, tau, share)
    with lent(model, training=False), sought.inputs.watched():
        for _ in range(1 if runner.once else passes):
            for batch, forward in runner:
                sought.mask = token_mask(batch, labelled)
                forward()
                sought.end_batch()
                runner.bar.set_description(f"{len(sought.settled)} of {len(sought.pcas)} inputs settled")
                if sought.done:
                    return Collected(sought.found(), runner.count, min(sought.tokens.values()), sought.peak)
            for path, layer in layers.items():
                head = sought.inputs.head.get(path)
                refuse_too_few(path, sought.tokens[head], min(most, weight_shape(layer)[1]), runner.count)
    raise ValueError(sought.unsettled(runner))


class _Sought:
    """The components of each distinct input, and which of them have settled."""

    def __init__(self, layers: dict[str, nn.Module], rank: int, most: int, rho: float, tau: float, share: bool):
        self.layers, self.rank, self.most, self.rho, self.tau = layers, rank, most, rho, tau
        self.inputs = LayerInputs(layers, self._take, share)
        self.mask: Tensor | None = None
        self.pcas: dict[str, IncrementalPCA] = {}
        self.waiting: dict[str, list[Tensor]] = {}  # rows of batches that were too small
        self.tokens: Counter = Counter()
        self.settled: set[str] = set()
        self.peak = 0

    def _take(self, path: str, x: Tensor) -> None:
        x, valid = tokens_of(x, self.mask)
        self.tokens[path] += int(valid.sum())
        if path in self.settled:
            return
        pca = self.pcas.setdefault(path, IncrementalPCA(min(self.most, x.shape[-1])))
        rows, waiting = x[valid].to(torch.promote_types(x.dtype, torch.float32)), self.waiting.setdefault(path, [])
        waiting.append(rows)
        needed = 0 if rows.dtype == x.dtype else rows.numel() * x.element_size()
        if sum(map(len, waiting)) >= pca.n:
            needed += pca.update(torch.cat(waiting) if len(waiting) > 1 else rows)
            waiting.clear()
        held = sum(p.nbytes for p in self.pcas.values()) + sum(r.nbytes for w in self.waiting.values() for r in w)
        self.peak = max(self.peak, held + needed)

    def found(self) -> dict[str, Components]:
        """The components of every layer, cut to the most that it can use."""
        limits = {path: min(self.most, *weight_shape(layer)) for path, layer in self.layers.items()}
        return {p: Components(*(t[:n] for t in self.pcas[self.inputs.head[p]].components)) for p, n in limits.items()}

    @property
    def done(self) -> bool:
        return len(self.inputs.head) == len(self.layers) and len(self.settled) == len(self.pcas)

    def end_batch(self) -> None:
        """See which components have settled, of those that would get a rank as things stand."""
        self.inputs.end_batch()
        groups = self.inputs.groups()
        needed = {head: pca.n for head, pca in self.pcas.items()}
        if len(self.inputs.head) == len(self.layers) and all(pca.components for pca in self.pcas.values()):
            ranks = eva_ranks({path: one.explained for path, one in self.found().items()}, self.rank, self.rho)
            needed = {head: max(ranks[path] for path in paths) for head, paths in groups.items()}
        self.settled = {head for head, n in needed.items() if self._lowest_cosine(head, n) >= self.tau}

    def _lowest_cosine(self, head: str, n: int) -> float:
        cosines = self.pcas[head].cosines
        return 1.0 if n == 0 else -1.0 if cosines is None else cosines[:n].min().item()

    def unsettled(self, runner: Runner) -> str:
        turning = {
            head: self._lowest_cosine(head, pca.n) for head, pca in self.pcas.items() if head not in self.settled
        }
        worst = min(turning, key=turning.get)
        again = ", of an iterator that cannot be read again" if runner.once else ""
        return (
            f"after {runner.count} batches{again} ({self.tokens[worst]} tokens) the components of {len(turning)} of "
            f"{len(self.pcas)} inputs still turn ({worst}: cosine {turning[worst]:.3f} < tau = {self.tau}): "
            "give more batches, or lower tau"
        )


class IncrementalPCA:
    """The n first principal components of rows that come in batches.

    With n directions V and singular values S of the m rows so far, of mean μ, and t new rows X of mean ν, all of them
    have the singular values and directions of  [diag(S) V; X - ν; √(m·t / (m + t)) (μ - ν)], up to what was cut off.
    """

    def __init__(self, n: int):
        self.n, self.rows = n, 0
        self.components: Components | None = None
        self.cosines: Tensor | None = None  # of each direction with itself before the last update
        self.flips: Tensor | int = 0  # how many updates in a row have turned it round
        self.mean: Tensor | None = None
        self.spread: Tensor | None = None  # Σ‖x - mean‖²

    @property
    def nbytes(self) -> int:
        held = [] if self.components is None else [*self.components, self.mean, self.cosines]
        return sum(tensor.nbytes for tensor in held if tensor is not None)

    @torch.no_grad()
    def update(self, X: Tensor) -> int:
        """Take in the rows X (t >= n, in), fp32 or fp64. Returns the bytes that were needed for it.

        Raises ValueError, with nothing changed, if X is not finite.
        """
        mean, kept, total = X.mean(0), 0 if self.components is None else self.n, self.rows + len(X)
        stack = X.new_empty(kept + len(X) + bool(kept), X.shape[1])
        centred = torch.sub(X, mean, out=stack[kept : kept + len(X)])
        # Rows first: a sum of so many squares needs fp64, but to convert every entry would take longer than all else.
        spread = torch.linalg.vector_norm(centred, dim=1).double().square().sum()
        if not spread.isfinite():
            raise ValueError(f"its inputs hold NaN or infinity, or too large a range for {X.dtype}")
        mean = mean.double()
        if kept:
            weight = self.rows * len(X) / total
            shift = self.mean - mean
            spread += self.spread + weight * shift.square().sum()
            torch.mul(self.components.directions, self.components.singular_values[:, None], out=stack[:kept])
            stack[-1] = math.sqrt(weight) * shift
            mean += self.rows / total * shift
        _, S, V = top_svd(stack, self.n, TOLERANCE)
        V = V * positive(V)[:, None]
        if kept:
            self.cosines = torch.cosine_similarity(V, self.components.directions)
            # The sign flips for ever where the two largest entries are nearly equal and opposite.
            self.flips = torch.where(self.cosines < 0, self.flips + 1, 0)
            self.cosines = torch.where(self.flips >= FLIPS, -self.cosines, self.cosines)
        self.rows, self.mean, self.spread = total, mean, spread
        self.components = Components(V, S, (S.double().square() / spread.clamp(min=1e-300)).to(S.dtype))
        return X.nbytes + stack.nbytes
