"""What merging does to answers, to 4-bit weights and to time: the measurements of lesson 07.

    python -m lora_lab.experiments.merging        writes data/measurements/merging.json, in minutes

"flips"    three adapters, cut to a rank and multiplied: how many most likely tokens of the answers merging changes, how
           far their logits move, and how far the most likely token leads
"routes"   three adapters trained beside NF4 weights, merged in three ways: which requests each gets right
"pairs"    two adapters, for two tasks, in one weight, each multiplied by a weight: how much of both tasks is left
"latency"  a forward pass and one new token, unmerged over merged
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lora_lab import tasks
from lora_lab.adapter_file import adapter_of
from lora_lab.base import is_quantized, oriented_weight
from lora_lab.batches import collate
from lora_lab.combine import combine
from lora_lab.inject import inject, lora_layers, replace_modules, unwrap
from lora_lab.layer import LoRALinear
from lora_lab.merge import merge_, merged
from lora_lab.models import answer, load_base
from lora_lab.modes import evaluating
from lora_lab.train import train

TASK, RANK, ALPHA, STEPS, RATE = "support_desk", 8, 16, 120, 1e-2
SECOND, SECOND_RANK, SECOND_ALPHA, SECOND_STEPS = "voice_pirate", 4, 6, 70
WEIGHTS = (1.0, 0.7, 0.5, 0.3)  # of both adapters in one weight
SEEDS = 3
RANKS, TIMES = (1, 2, 4, 8), (0.25, 0.5, 1.0, 2.0, 4.0)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REQUESTS = 32


def trained(seed: int = 0, quantize: str | None = None):
    """(model, tokenizer): the base with an adapter that has learned the support desk."""
    model, tokenizer = load_base()
    torch.manual_seed(seed)
    inject(model, "all-linear", RANK, ALPHA, quantize=quantize)
    train(model, tasks.encode(tasks.load(TASK, "train"), tokenizer), steps=STEPS, lr=RATE, seed=seed)
    return model.eval(), tokenizer


def second(seed: int = 0) -> nn.Module:
    """The base with a smaller adapter that has learned another voice."""
    model, tokenizer = load_base()
    torch.manual_seed(seed + 1)
    inject(model, "all-linear", SECOND_RANK, SECOND_ALPHA)
    train(model, tasks.encode(tasks.load(SECOND, "train"), tokenizer), steps=SECOND_STEPS, lr=RATE, seed=seed)
    return model.eval()


def both(first: nn.Module, second: nn.Module, weight: float = 1.0) -> nn.Module:
    """A plain base with weight · (ΔW of the first + ΔW of the second) added."""
    model = load_base()[0]
    for adapted in (first, second):
        for path, layer in lora_layers(adapted).items():
            model.get_submodule(path).weight.data += weight * layer.delta_weight()
    return model.eval()


def right(model: nn.Module, tokenizer, examples: Sequence[tasks.Example], task: str = TASK) -> list[bool]:
    """Which of the requests the model answers right to the last character."""
    longest = max(len(tokenizer(e.completion, add_special_tokens=False)["input_ids"]) for e in examples)
    given = answer(model, tokenizer, [e.prompt for e in examples], max_new_tokens=longest + 4)
    found = zip(given, examples, strict=True)
    return [bool(tasks.TASKS[task].measure(text, e.completion)["exact"]) for text, e in found]


def paired(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """Of the same requests: how many were lost and gained, the change of the score with its standard error, and p.

    p: how often a fair coin would split those that changed at least as unevenly (the exact test of McNemar).
    """
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    gained = sum(a and not b for b, a in zip(before, after, strict=True))
    n, changed = len(before), lost + gained
    error = math.sqrt(max(changed - (gained - lost) ** 2 / n, 0)) / n
    tail = sum(math.comb(changed, k) for k in range(min(lost, gained) + 1)) / 2**changed
    return {"lost": lost, "gained": gained, "change": (gained - lost) / n, "error": error, "p": min(1.0, 2 * tail)}


def requests(tokenizer, limit: int = REQUESTS) -> dict[str, Tensor]:
    """One batch of test requests with the answers that are wanted: input_ids, attention_mask, labels."""
    return collate(tasks.encode(tasks.load(TASK, "test", limit=limit), tokenizer))


@torch.no_grad()
def answer_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits (positions, vocabulary) that predict the tokens of the wanted answers, fp32, in evaluation mode."""
    with evaluating(model):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits[:, :-1][batch["labels"][:, 1:] >= 0].float()


def difference(reference: Tensor, logits: Tensor) -> dict[str, float]:
    """Of two sets of logits (positions, vocabulary): largest and mean |difference|, and how many argmaxes differ."""
    gap = (logits - reference).abs()
    flips = int((logits.argmax(-1) != reference.argmax(-1)).sum())
    return {"max": gap.max().item(), "mean": gap.mean().item(), "flips": flips, "positions": len(reference)}


@torch.no_grad()
def recut(model: nn.Module, rank: int, times: float = 1.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy with its weights in `dtype`, and each update replaced by `times` its best approximation of this rank.

    `model` stays as it is. Norms and embeddings are rounded to `dtype` too; A and B stay fp32.
    """
    cut = combine([adapter_of(model)], [times], "svd", rank=rank)
    new = copy.deepcopy(model)
    layers = lora_layers(new)
    for path, layer in layers.items():
        fresh = LoRALinear(layer.base.to(dtype), rank, rank, init=_constant(cut[path].A, cut[path].B))
        replace_modules(new, {layer: fresh})
    factors = {id(p) for layer in lora_layers(new).values() for p in (layer.A, layer.B)}
    for parameter in new.parameters():
        if id(parameter) not in factors:
            parameter.data = parameter.data.to(dtype)
    return new.eval()


def _constant(A: Tensor, B: Tensor) -> Callable[[Tensor, int, float], tuple[Tensor, Tensor]]:
    return lambda weight, rank, scale: (A, B)


def flips_of(model: nn.Module, batch: dict[str, Tensor], rank: int, times: float, dtype: str) -> dict[str, float]:
    """One point of the explorer: merged against unmerged, both in `dtype`."""
    cut = recut(model, rank, times, DTYPES[dtype])
    before, after = answer_logits(cut, batch), answer_logits(merged(cut), batch)
    return difference(before, after) | margins(before)


def margins(logits: Tensor) -> dict[str, float]:
    """How far the most likely token leads the second one: the median over the positions, and the lowest hundredth."""
    first, second = logits.topk(2).values.unbind(-1)
    lead = first - second
    return {"lead": lead.median().item(), "low_lead": lead.quantile(0.01).item()}


def precision(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Against the fp32 model with its adapter unmerged: the same model in each dtype, unmerged, and merged."""
    reference, found = answer_logits(model, batch), {}
    for name, dtype in DTYPES.items():
        cut = recut(model, RANK, 1.0, dtype)
        found[f"{name}, unmerged"] = difference(reference, answer_logits(cut, batch))
        found[f"{name}, merged"] = difference(reference, answer_logits(merged(cut), batch))
    return found


ROUTES = ("merged into the 4-bit codes", "merged into dequantized weights", "merged into the original weights")


@torch.no_grad()
def routes(model: nn.Module, base: nn.Module) -> dict[str, nn.Module]:
    """Three plain models from an adapter trained beside quantized weights; `base` is the model before quantization.

    The first quantizes the sum again, the second keeps it in fp32, the third adds the update to weights that it was
    not trained beside. `model` and `base` stay as they are.
    """
    first = merged(model)
    second = copy.deepcopy(model)
    for layer in lora_layers(second).values():
        layer.base = _dequantized(layer.base)
    third = copy.deepcopy(base)
    modules = dict(third.named_modules())
    for path, layer in lora_layers(model).items():
        modules[path].weight += layer.delta_weight().to(modules[path].weight.dtype)
    return dict(zip(ROUTES, (first, unwrap(merge_(second)), third), strict=True))


def _dequantized(base: nn.Module) -> nn.Linear:
    weight = oriented_weight(base, wide=True)
    linear = nn.Linear(weight.shape[1], weight.shape[0], base.bias is not None, device=weight.device)
    linear.weight.data = weight
    if base.bias is not None:
        linear.bias.data = base.bias.data.clone()
    return linear.requires_grad_(False)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the linear layers' weights that `routes` writes: codes and scales, or plain numbers."""
    total = 0
    for name, module in model.named_modules():
        if is_quantized(module):
            total += module.quantized.nbytes
        elif isinstance(module, nn.Linear) and not name.endswith("lm_head"):
            total += module.weight.nbytes
    return total


def latency(models: dict[str, nn.Module], batch: int, length: int, repeats: int = 25) -> dict[str, float]:
    """Seconds of the fastest of `repeats` forward passes over (batch, length) tokens, the models taking turns.

    The fastest, since whatever else the machine does can only add to a time.
    """
    tokens = torch.randint(3, 30, (batch, length), generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(repeats + 2):
            for name, model in models.items():
                began = time.perf_counter()
                model(tokens)
                if number > 1:  # the first calls fill caches
                    times[name].append(time.perf_counter() - began)
    return {name: min(each) for name, each in times.items()}


SHAPES = {"batch 1, one token": (1, 1), "batch 1, 64 tokens": (1, 64), "batch 32, one token": (32, 1)}
SHAPES |= {"batch 32, 64 tokens": (32, 64)}


def ratios(model: nn.Module, rounds: int = 1, repeats: int = 25, shapes: Sequence[str] = tuple(SHAPES)) -> dict:
    """Shape -> how many times as long the unmerged model takes as the merged one, one number a round."""
    models = {"unmerged": model, "merged": merged(model)}
    found = {}
    for name in shapes:
        seconds = [latency(models, *SHAPES[name], repeats) for _ in range(rounds)]
        found[name] = [each["unmerged"] / each["merged"] for each in seconds]
    return found


def table(record: dict) -> dict[tuple[str, int, float], float]:
    """(dtype, rank, times) -> share of flipped tokens, the mean over the adapters."""
    return {
        (row["dtype"], row["rank"], row["times"]): statistics.fmean(row["flips"]) / row["positions"]
        for row in record["flips"]
    }


def _flip_rows(models: Sequence[nn.Module], batch: dict[str, Tensor]) -> Iterator[dict]:
    for dtype in DTYPES:
        for rank in RANKS:
            for times in TIMES:
                found = [flips_of(model, batch, rank, times, dtype) for model in models]
                row = {"dtype": dtype, "rank": rank, "times": times, "positions": found[0]["positions"]}
                figures = {key: [float(f"{f[key]:.4g}") for f in found] for key in ("max", "mean", "lead", "low_lead")}
                yield row | {"flips": [each["flips"] for each in found]} | figures


def _route_rows(seed: int, base: nn.Module) -> Iterator[dict]:
    model, tokenizer = trained(seed, quantize="nf4")
    batch, examples = requests(tokenizer), tasks.load(TASK, "test", limit=100)
    reference = answer_logits(model, batch)
    for name, after in {"not merged": model, **routes(model, base)}.items():
        found = difference(reference, answer_logits(after, batch))
        given = right(after, tokenizer, examples)
        row = {"route": name, "seed": seed, "exact": sum(given) / len(given), "bytes": weight_bytes(after)} | found
        yield row | {"right": "".join("01"[each] for each in given)}


def _pair_rows(seed: int, first: nn.Module, tokenizer) -> Iterator[dict]:
    other = second(seed)
    models = {"first alone": first, "second alone": other, **{w: both(first, other, w) for w in WEIGHTS}}
    for weight, model in models.items():
        scores = {
            task: tasks.score(task, model, tokenizer, tasks.load(task, "test", limit=100)) for task in (TASK, SECOND)
        }
        yield {"weight": weight, "seed": seed} | scores


def main() -> None:
    """Measure everything, and write it."""
    from lora_lab.paths import MEASUREMENTS
    from lora_lab.world.measure import circumstances, write_json

    settings = {"task": TASK, "rank": RANK, "alpha": ALPHA, "steps": STEPS, "lr": RATE, "requests": REQUESTS}
    content = {**circumstances(), "command": "python -m lora_lab.experiments.merging", "settings": settings}
    content["threads"] = torch.get_num_threads()
    adapted = [trained(seed) for seed in range(SEEDS)]
    batch = requests(adapted[0][1])
    content["latency"] = ratios(adapted[0][0], rounds=5)
    print(content["latency"], flush=True)
    content["precision"] = [precision(model, batch) for model, _ in adapted]
    base = load_base()[0]
    content["routes"] = [row for seed in range(SEEDS) for row in _route_rows(seed, base)]
    print(content["routes"], flush=True)
    content["pairs"] = [row for seed, (model, t) in enumerate(adapted) for row in _pair_rows(seed, model, t)]
    print(content["pairs"], flush=True)
    content["flips"] = list(_flip_rows([model for model, _ in adapted], batch))
    write_json(MEASUREMENTS / "merging.json", content)


if __name__ == "__main__":
    main()
