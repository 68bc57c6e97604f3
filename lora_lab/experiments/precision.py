"""Number formats in training: range against spacing, loss scaling, and a run that is saved from its NaN.

    python -m lora_lab.experiments.precision        writes data/measurements/precision.json, in minutes of one core

"formats"   range and spacing of fp32, fp16 and bf16, from torch.finfo
"census"    of the gradients of A and B computed in fp16: how many are rounded to zero, how many overflow, by loss scale
"activations"  the largest number inside the model at each step of fp32 runs, by learning rate
"runs"      the same training in each format, at several learning rates and seeds: the loss, or the step that failed
"scaler"    a run under a dynamic loss scale that begins far too high: its scale and its skipped steps
"recovery"  a run that fails in fp16 and goes on in bf16 from its last checkpoint, beside one that was bf16 throughout

Everything runs on the CPU, in one thread. There fp16 and bf16 are slow; only their numbers are looked at.

Two ways to fail are seen in fp16. With A and B in fp16 too, Adam's eps of 1e-8 is rounded to zero; the gradient of A is
zero in the first step, because B is, and 0 / (0 + 0) is NaN: at any learning rate. With A and B in fp32 it is an output
of the model beyond 65,504, at rates that fp32 and bf16 survive, though they do not train well either.
"""

import copy
import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_lab import tasks
from lora_lab.batches import batch_at, collate
from lora_lab.experiments.sweep import digits, one_thread
from lora_lab.inject import inject, lora_layers
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.train import Diverged, History, mean_loss, train
from lora_lab.world.measure import circumstances, write_json

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
KINDS = {name: (dtype, torch.float32) for name, dtype in DTYPES.items()}  # of the base, and of A and B
KINDS["fp16, A and B too"] = (torch.float16, torch.float16)
TASK, RANK, ALPHA, BATCH = "support_desk", 8, 16, 4
STEPS, SEEDS, RATES = 12, 3, (0.01, 0.1, 0.3)
SCALES = tuple(2.0**k for k in range(-16, 33, 4))
AT = (1e-4, 0.01, 1.0, 100.0, 10_000.0)  # where the spacing is told
FAILING = 0.3  # the rate of the run that recovers


def spacing(value: float, dtype: torch.dtype) -> float:
    """The distance from |value|, rounded to `dtype`, to the next larger number of `dtype`. NaN for NaN and infinity."""
    near = torch.tensor(abs(value), dtype=torch.float64).to(dtype)
    above = torch.nextafter(near, torch.tensor(math.inf, dtype=dtype))
    return (above.double() - near.double()).item() if torch.isfinite(near) else math.nan


def formats() -> dict[str, dict[str, float]]:
    """For each format: bits, largest number, smallest normal and smallest positive one, eps, and spacings at `AT`."""
    found = {}
    for name, dtype in DTYPES.items():
        info = torch.finfo(dtype)
        found[name] = {"bits": info.bits, "largest": info.max, "smallest_normal": info.smallest_normal}
        found[name] |= {"smallest": spacing(0.0, dtype), "eps": info.eps}
        found[name]["spacing"] = {f"{value:g}": spacing(value, dtype) for value in AT}
    return found


def adapted(base: nn.Module, dtype: torch.dtype, seed: int, factors: torch.dtype = torch.float32) -> nn.Module:
    """A copy of the base in `dtype` with adapters, the same numbers for the same seed. factors: the dtype of A and B,
    fp32 as PEFT keeps them beside a base in half precision."""
    model = copy.deepcopy(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject(model, "all-linear", RANK, ALPHA)
    layers = lora_layers(model).values()
    exact = [(layer.A.detach().clone(), layer.B.detach().clone()) for layer in layers]  # not rounded on the way
    model.to(dtype)
    for layer, (A, B) in zip(layers, exact, strict=True):
        layer.A.data, layer.B.data = A.to(factors), B.to(factors)
    return model


def census(model: nn.Module, batch: dict, scales: Iterable[float] = SCALES) -> list[dict[str, Any]]:
    """Gradients of A and B in fp16 with the loss times each scale, against those in fp32.

    model: fp32, with adapters that have learned a little: at B = 0 all gradients of A are zero in any format. Shares of
    the numbers that are not zero in fp32: "zero" rounded to zero, "overflow" infinite or NaN. "error": relative error
    of the whole gradient after division by the scale, None if any number overflows.
    """
    exact = _gradients(model, batch, 1.0)
    half = copy.deepcopy(model).half()
    rows = []
    for scale in scales:
        seen = _gradients(half, batch, scale)
        there = exact != 0
        bad = ~torch.isfinite(seen)
        error = None if bad.any() else digits(((seen / scale - exact).norm() / exact.norm()).item())
        shares = {"zero": (seen == 0)[there], "overflow": bad[there]}
        rows.append(
            {"scale": scale, **{k: digits(v.double().mean().item()) for k, v in shares.items()}, "error": error}
        )
    return rows


def run(base: nn.Module, kind: str, rate: float, seed: int, data: Sequence[dict], unseen: Sequence[dict]) -> dict:
    """Train in one of `KINDS`: the loss on unseen examples in that format, or the step at which a number was none."""
    model = adapted(base, KINDS[kind][0], seed, KINDS[kind][1])
    row: dict[str, Any] = {"kind": kind, "lr": rate, "seed": seed, "failed": None, "validation_loss": None}
    history, stopped = attempt(model, data, lr=rate, seed=seed)
    row["loss"] = [digits(loss, 4) for loss in history.loss]
    if stopped:
        return row | {"failed": len(history.loss) + 1, "stopped": stopped}
    loss = mean_loss(model, unseen)
    spoiled = not math.isfinite(loss)
    return row | {"validation_loss": digits(loss), "failed": STEPS if spoiled else None, "stopped": ""}


def attempt(model: nn.Module, data: Sequence[dict], **settings: Any) -> tuple[History, str]:
    """`train`, and where a number is none any more the history until then with the reason. steps: `STEPS`."""
    last = History()

    def look(step: int, history: History) -> None:
        nonlocal last
        last = history

    try:
        train(model, data, **{"steps": STEPS, "batch_size": BATCH, "progress": False, "on_step": look} | settings)
    except Diverged as error:
        return last, str(error)
    return last, ""


@torch.no_grad()
def largest_activation(model: nn.Module, batch: dict) -> dict[str, Any]:
    """The largest |number| that any module of the model puts out for this batch, and the module's path."""
    largest: dict[str, float] = {}

    def listen(name: str):
        def hook(module, inputs, output) -> None:
            for each in output if isinstance(output, tuple) else (output,):
                if isinstance(each, torch.Tensor) and each.is_floating_point():
                    largest[name] = max(largest.get(name, 0.0), each.abs().max().item())

        return hook

    hooks = [module.register_forward_hook(listen(name)) for name, module in model.named_modules() if name]
    try:
        model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    where = max(largest, key=largest.get)
    return {"where": where, "value": digits(largest[where])}


def activations(base: nn.Module, data: Sequence[dict], rate: float, seed: int = 0, steps: int = STEPS) -> list[dict]:
    """`largest_activation` on the batch of step 1, 2, ... `steps` of an fp32 run, with the weights it then has."""
    model, rows = adapted(base, torch.float32, seed), []

    def look(done: int, history: History | None = None) -> bool:
        batch = collate(batch_at(data, BATCH, seed, done))
        rows.append({"lr": rate, "step": done + 1, **largest_activation(model, batch)})
        return done + 1 >= steps

    look(0)
    attempt(model, data, lr=rate, seed=seed, on_step=look)
    return rows


def scaled(base: nn.Module, data: Sequence[dict], begin: float, steps: int = 16, rate: float = 0.01) -> list[dict]:
    """Train adapters in fp32 beside a model that computes in fp16 (autocast), under a dynamic loss scale.

    The scale begins at `begin`, is halved after a step whose gradients overflow (which is skipped), and doubled after
    eight good ones in a row. One row a step: "loss", "scale" it was computed with, "skipped".
    """
    model = adapted(base, torch.float32, 0).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=begin, growth_interval=8)
    rows = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.float16):
            loss = model(**collate(batch_at(data, BATCH, 0, step))).loss
        scale = scaler.get_scale()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        scaler.step(optimizer)
        scaler.update()
        rows.append({"loss": digits(loss.item(), 4), "scale": scale, "skipped": scaler.get_scale() < scale})
    return rows


def recovery(
    base: nn.Module, data: Sequence[dict], unseen: Sequence[dict], rate: float, seed: int = 0, save_every: int = 2
) -> dict[str, Any]:
    """Train in fp16 until a number is none, then in bf16 from the last checkpoint; and in bf16 from the start.

    The checkpoint holds the settings, the factors, the optimizer's state and the history, so that the second half
    is the same run in another format: same batches, same rates. "checkpoint": the step it is of.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        settings = {"lr": rate, "seed": seed, "save_every": save_every}
        first, stopped = attempt(adapted(base, DTYPES["fp16"], seed), data, checkpoint=path, **settings)
        if not stopped:
            return {"lr": rate, "seed": seed, "stopped": "", "fp16": _losses(first)}
        saved = save_every * (len(first.loss) // save_every)
        model = adapted(base, DTYPES["bf16"], seed)
        second, again = attempt(model, data, checkpoint=path, **settings)
    whole_model = adapted(base, DTYPES["bf16"], seed)
    whole, failed = attempt(whole_model, data, **settings)
    return {
        "lr": rate,
        "seed": seed,
        "stopped": stopped,
        "fp16": _losses(first),
        "checkpoint": saved,
        "then_bf16": _losses(second),
        "then_stopped": again,
        "bf16": _losses(whole),
        "bf16_stopped": failed,
        "validation_loss": {
            "fp16, then bf16": None if again else digits(mean_loss(model, unseen)),
            "bf16": None if failed else digits(mean_loss(whole_model, unseen)),
        },
    }


def table(record: dict) -> str:
    """The record's runs as text: one line a rate, for each format the losses of the seeds or the step that failed."""
    lines = ["rate   " + "".join(name.ljust(28) for name in KINDS)]
    for rate in dict.fromkeys(row["lr"] for row in record["runs"]):
        cells = []
        for name in KINDS:
            rows = [row for row in record["runs"] if (row["lr"], row["kind"]) == (rate, name)]
            cells.append(
                ", ".join(f"step {r['failed']}!" if r["failed"] else f"{r['validation_loss']:.3f}" for r in rows).ljust(
                    28
                )
            )
        lines.append(f"{rate:<7g}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _losses(history: History) -> list[float | None]:
    return [digits(loss, 4) for loss in history.loss]


def _gradients(model: nn.Module, batch: dict, scale: float) -> torch.Tensor:
    """All gradients of A and B, in a row, fp32."""
    model.zero_grad(set_to_none=True)
    (model(**batch).loss * scale).backward()
    layers = lora_layers(model).values()
    return torch.cat([p.grad.flatten().float() for layer in layers for p in (layer.A, layer.B)])


def main() -> None:
    """Measure everything, and write it."""
    base, tokenizer = load_base(device="cpu")
    data = tasks.encode(tasks.load(TASK, "train"), tokenizer)
    unseen = tasks.encode(tasks.load(TASK, "validation", 60), tokenizer)
    settings = {"task": TASK, "rank": RANK, "alpha": ALPHA, "batch_size": BATCH, "steps": STEPS, "threads": 1}
    content: dict[str, Any] = {**circumstances(), "command": "python -m lora_lab.experiments.precision"}
    content |= {"settings": settings, "formats": formats()}
    with one_thread():
        model = adapted(base, torch.float32, 0)
        train(model, data, steps=5, lr=0.01, progress=False)
        content["census"] = census(model, collate(batch_at(data, BATCH, 0, 5)))
        content["activations"] = [row for rate in RATES for row in activations(base, data, rate)]
        content["scaler"] = scaled(base, data, 2.0**20)
        grid = [(name, rate, seed) for rate in RATES for name in KINDS for seed in range(SEEDS)]
        print(*content["activations"], *content["scaler"], sep="\n", flush=True)
        content["runs"] = [run(base, *point, data, unseen) for point in grid]
        print(table(content), flush=True)
        write_json(MEASUREMENTS / "precision.json", content)
        content["recovery"] = [recovery(base, data, unseen, FAILING, seed) for seed in range(SEEDS)]
    write_json(MEASUREMENTS / "precision.json", content)


if __name__ == "__main__":
    main()
