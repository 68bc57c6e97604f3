"""What one step of SGD and of Adam does at a given rank, alpha and rule, and what is left of it after twenty.

Only B moves at first, since B = 0. With G = dL/dW (out, in), s the scale and η the rate, dL/dB = s·G Aᵀ (out, r) and

    SGD    ΔW = -η s² G AᵀA          loss falls by about η s² ‖G Aᵀ‖² ~ η s² r
    Adam   ΔW = -η s sign(G Aᵀ) A    loss falls by about η s  ‖G Aᵀ‖₁ ~ η s  r

A has independent entries of variance 1/(3 in), so ‖G Aᵀ‖ is about ‖G‖ √(r / (3 in)): that is how much smaller than G
the gradient of B is, times s. ‖ΔW‖ goes like s² √r under SGD and like s √r under Adam, while r is well below in.
Sources: Hu et al. 2021 (arXiv:2106.09685), section 4.1; Kalajdzievski 2023 (arXiv:2312.03732). Measured in fp64 (but
for transformers' norms, which are fp32 in any model), without warm-up or clipping, the first step on one fixed batch.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lora_lab import lora_layers
from lora_lab.adapter import scale_of
from lora_lab.batches import IGNORE, batch_at, collate
from lora_lab.experiments.rank_alpha.record import Record
from lora_lab.experiments.rank_alpha.runs import RULES, Setting, World, started, update_norm
from lora_lab.experiments.sweep import digits, one_thread

OPTIMIZERS = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}
RATES = {"SGD": 3e-4, "Adam": 1e-5}  # small: the first order is what is looked at
RANKS, ALPHAS, LATER, SEEDS = (1, 2, 4, 8, 16, 32, 64, 128), (16, 32), 20, 3
LATER_RANKS = (4, 64)


def steps(record: Record, seeds: int = SEEDS, all_ranks: tuple[int, ...] = RANKS) -> None:
    """Every rank, rule and optimizer for one step; ranks 4 and 64, the seed 0 and alpha 16 for twenty."""
    known = [tuple(row[name] for name in ("optimizer", "rank", "alpha", "rule", "seed")) for row in record.runs]
    for optimizer, rule, alpha, rank, seed in _grid(seeds, all_ranks):
        if (optimizer, rank, alpha, rule, seed) in known:
            continue
        setting = Setting(rank=rank, alpha=alpha, rule=rule, lr=RATES[optimizer], seed=seed, dtype="float64")
        longer = rank in LATER_RANKS and seed == 0
        record.add(measure_steps, record.where(setting.task), setting, optimizer, LATER if longer else 1)


def _grid(seeds: int, all_ranks: tuple[int, ...]) -> Iterator[tuple[str, str, int, int, int]]:
    for optimizer in OPTIMIZERS:
        for rule in RULES:
            for alpha in ALPHAS:
                for rank in all_ranks if alpha == ALPHAS[0] else LATER_RANKS:
                    for seed in range(seeds):
                        yield optimizer, rule, alpha, rank, seed


def measure_steps(where: World, setting: Setting, optimizer: str, count: int) -> dict:
    """`count` steps of `optimizer` at the constant rate `setting.lr`. After the first and after the last of them:

    loss_drop       on the first batch, before minus after (nats per token)
    output_change   root mean square change of the logits at the tokens to be predicted
    update_norm     ‖ΔW‖ over all linear layers
    and before the first: gradient_B = ‖dL/dB‖, gradient_W = ‖dL/dW‖ over the same layers, and expected_ratio, the root
    mean square over the layers of s √(r / (3 in)), weighted by ‖dL/dW‖².
    """
    with one_thread():
        model = started(where.base, setting)
        batches = [collate(batch_at(where.data["train"], setting.batch_size, 0, step)) for step in range(count)]
        result, logits, before = _gradients(model, batches[0])
        factors = [p for p in model.parameters() if p.requires_grad]
        rule = OPTIMIZERS[optimizer](factors, lr=setting.lr)
        for step, batch in enumerate(batches, 1):
            rule.zero_grad()
            _loss(model, batch)[0].backward()
            rule.step()
            if step in (1, count):
                with torch.no_grad():
                    loss, now = _loss(model, batches[0])
                change = (now - logits).square().mean().sqrt().item()
                result[f"after {step}"] = {
                    "loss_drop": digits(before - loss.item()),
                    "output_change": digits(change),
                    "update_norm": digits(update_norm(where.base, model)),
                }
    names = ("rank", "alpha", "rule", "lr", "batch_size", "task", "seed")
    return {"optimizer": optimizer} | {name: getattr(setting, name) for name in names} | result


def _gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[dict, Tensor, float]:
    """Norms of the gradients at the start, the logits there, and the loss. The model is left as it was."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.base.weight.requires_grad_(True)
    loss, logits = _loss(model, batch)
    loss.backward()
    of_W = [layer.base.weight.grad.norm().item() for layer in layers]
    of_B = [layer.B.grad.norm().item() for layer in layers]
    ratios = [scale_of(m.rank, m.alpha, m.rslora) * math.sqrt(m.rank / (3 * m.A.shape[1])) for m in layers]
    for layer in layers:
        layer.base.weight.requires_grad_(False).grad = None
    expected = math.hypot(*(ratio * norm for ratio, norm in zip(ratios, of_W, strict=True))) / math.hypot(*of_W)
    values = {"gradient_B": math.hypot(*of_B), "gradient_W": math.hypot(*of_W), "expected_ratio": expected}
    found = {name: digits(value) for name, value in values.items()}
    return found, logits.detach(), loss.item()


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss, and the logits (tokens, vocabulary) it is of. The model's own loss is fp32: coarse, for small steps."""
    labels = batch["labels"][:, 1:]
    asked = labels != IGNORE
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][asked]
    return nn.functional.cross_entropy(logits, labels[asked]), logits
