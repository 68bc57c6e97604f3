"""What the data-driven inits read off a model that runs on some batches.

    input_covariances  C (in, in) = 1/n Σᵢ Xᵢᵀ Xᵢ / max(Xᵢ)²    Xᵢ (tokens, in) a layer's inputs on sample i    (CorDA)
    mean_gradients     G (out, in) = 1/n Σⱼ ∂Lⱼ/∂W              Lⱼ the loss on batch j                         (LoRA-GA)
    input_components   principal components of all its inputs, and the share of variance along each              (EVA)

Each returns `Collected`, a dict by the path of the layer. Everything is summed in fp32 or better, whatever the model
computes in. The model is left as it was, to hooks, modes, flags and .grad, also after an error or an interrupt.
To hold less at one time, collect for some of the targets, use it, then collect for the next.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from lora_lab.base import is_conv1d, is_quantized, refuse_unwritable, weight_shape
from lora_lab.init.collect import Collected, Run, Runner, Targets, check_count, layers_of, lent, refuse_too_few
from lora_lab.init.components import input_components
from lora_lab.init.layer_inputs import LayerInputs, token_mask, tokens_of

__all__ = ["Collected", "input_components", "input_covariances", "mean_gradients"]


@torch.no_grad()
def input_covariances(
    model: nn.Module,
    targets: Targets,
    batches: Iterable,
    *,
    min_tokens: int | None = None,
    run: Run | None = None,
    share: bool = True,
    progress: bool = True,
) -> Collected:
    """The covariance (in, in) of the inputs of each target, uncentred, as CorDA takes it.

    C = 1/n Σᵢ Xᵢᵀ Xᵢ / max(Xᵢ)², over n samples, of which the attention mask says what is padding. The largest entry of
    a sample (not the largest in size) divides it, as in the authors' code and PEFT; where that is 0, nothing does.
    PEFT takes one sample at a time only. Here a batch of n samples is the same as n batches of one.

    Args:
        targets: as in `find_targets`, or layers by their path.
        batches: dicts that the model is called with, as `lora_lab.train.collate` makes them.
        min_tokens: how many each layer must see; None: as many as it has inputs, as fewer make a singular covariance.
            PEFT's advice is 128 times as many.
        run: called as run(model, batch) instead of model(**batch).
        share: False if layers may read the same tensor at first, but not later.

    Raises ValueError if the batches end before that, a layer is never reached, or an input is not finite.
    """
    layers = layers_of(model, targets)
    check_count(min_tokens, "min_tokens")
    runner, sums = Runner(model, batches, run, progress), _Covariances()
    inputs = LayerInputs(layers, sums.add, share)
    with lent(model, training=False), inputs.watched():
        for batch, forward in runner:
            sums.mask = token_mask(batch)
            forward()
            inputs.end_batch()
    for path, layer in layers.items():
        needed = min_tokens or weight_shape(layer)[1]
        refuse_too_few(path, sums.tokens[inputs.head.get(path)], needed, runner.count)
    for head, total in sums.total.items():
        total /= sums.samples[head]
    found = {path: sums.total[inputs.head[path]] for path in layers}
    return Collected(found, runner.count, min(sums.tokens.values()), sums.peak)


class _Covariances:
    """Σᵢ Xᵢᵀ Xᵢ / max(Xᵢ)² by layer."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.total: dict[str, Tensor] = {}
        self.samples: Counter = Counter()
        self.tokens: Counter = Counter()
        self.peak = self.held = 0

    def add(self, path: str, x: Tensor) -> None:
        x, valid = tokens_of(x, self.mask)
        counts = valid.sum(1)
        wide = torch.promote_types(x.dtype, torch.float32)  # squares of half precision overflow
        largest = x.amax(-1).masked_fill(~valid, -torch.inf).amax(1).abs().to(wide)
        rows = x[valid].to(wide) / largest.masked_fill(largest == 0, 1).repeat_interleave(counts)[:, None]
        if path not in self.total:
            self.total[path] = rows.new_zeros(x.shape[-1], x.shape[-1])
            self.held += self.total[path].nbytes
        if not self.total[path].addmm_(rows.T, rows).diagonal().isfinite().all():
            raise ValueError(f"its inputs hold NaN or infinity, or too large a range for {wide}")
        self.samples[path] += int((counts > 0).sum())
        self.tokens[path] += len(rows)
        self.peak = max(self.peak, self.held + 2 * rows.nbytes)


def mean_gradients(
    model: nn.Module,
    targets: Targets,
    batches: Iterable,
    *,
    training: bool = True,
    run: Run | None = None,
    progress: bool = True,
) -> Collected:
    """The mean gradient (out, in) of the loss with respect to the weight of each target, for LoRA-GA.

    G = 1/n Σⱼ ∂Lⱼ/∂W over n batches, each of which counts the same, as in PEFT. It is summed in fp32, and the gradient
    of each layer is freed as soon as it is added (PEFT sums in the model's dtype, in .grad). Only targets get one.

    Args: as in `input_covariances`, and
        training: run in train mode, with dropout and gradient checkpointing, as PEFT does; False: in eval mode. The
            global random state is as it was afterwards.
        run: called as run(model, batch), returns the loss, or an object that has it as `.loss`.

    Raises ValueError for a batch without a loss, a loss or gradient that is not finite, a target that the loss does not
    depend on, or one whose weight is quantized, computed or shared.
    """
    layers = layers_of(model, targets)
    for path, layer in layers.items():
        if is_quantized(layer):
            raise ValueError(f"{path} is quantized: its codes have no gradient. Take it from the model before that")
    refuse_unwritable(model, layers)
    runner, sums, tokens = Runner(model, batches, run, progress), _Gradients(), 0
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=gpus), lent(model, training), sums.watched(model, layers), torch.enable_grad():
        for batch, forward in runner:
            mask = token_mask(batch, labelled=True)
            tokens += 0 if mask is None else int(mask.sum())
            _loss(forward(), runner.count).backward()
    for path in layers:
        if path not in sums.total:
            raise ValueError(f"{path}: no gradient in {runner.count} batches, the loss does not depend on it")
    for total in sums.total.values():
        total /= runner.count
    found = {path: sums.total[path].T if is_conv1d(layer) else sums.total[path] for path, layer in layers.items()}
    return Collected(found, runner.count, tokens, sums.peak)


def _loss(output: object, number: int) -> Tensor:
    loss = output if isinstance(output, Tensor) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise ValueError(f"batch {number} gave no loss (one number): does it hold labels? Got {type(output).__name__}")
    if not loss.isfinite():
        raise ValueError(f"the loss of batch {number} is {loss.item()}")
    return loss


class _Gradients:
    """Σⱼ ∂Lⱼ/∂W by layer, in the layout of its weight."""

    def __init__(self) -> None:
        self.total: dict[str, Tensor] = {}
        self.peak = self.held = 0

    @contextlib.contextmanager
    def watched(self, model: nn.Module, layers: dict[str, nn.Module]) -> Iterator[None]:
        """Let the weights of `layers`, and nothing else, have gradients; take each as it comes."""
        flags = {p: p.requires_grad for p in model.parameters()}
        kept = {layer.weight: layer.weight.grad for layer in layers.values()}
        handles = []
        try:
            model.requires_grad_(False)
            for path, layer in layers.items():
                layer.weight.requires_grad_(True)
                layer.weight.grad = None
                handles.append(layer.weight.register_post_accumulate_grad_hook(self._taker(path)))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for weight, grad in kept.items():
                weight.grad = grad
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)

    def _taker(self, path: str):
        def take(weight: Tensor) -> None:
            grad, weight.grad = weight.grad, None
            low, high = grad.aminmax()
            if not (low.isfinite() and high.isfinite()):
                raise ValueError(f"{path}: its gradient is NaN or infinite in {grad.dtype}")
            if path in self.total:
                self.total[path] += grad
            else:
                self.total[path] = grad.to(torch.promote_types(grad.dtype, torch.float32))
                self.held += self.total[path].nbytes
            self.peak = max(self.peak, self.held)

        return take
