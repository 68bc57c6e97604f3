"""Short training runs in a process of their own, steered by lines of JSON: the far end of `widgets.live_run`.

    in    {"rank": 8, "alpha": 16, "rule": "lora", "optimizer": "adam", "lr": 0.01, "steps": 40, "seed": 0}
    out   {"kind": "start"}, then for each step {"kind": "step", "step", "loss", "grad_A", "grad_B", "norm"},
          then {"kind": "done", "validation", "norm", "norm_W", "spectrum"} or {"kind": "error", "says"}

It ends when stdin closes, so it never outlives the program that started it, and after `IDLE` seconds without work.
norm is ‖ΔW‖ over all adapted layers, grad_A and grad_B the norms of their gradients before clipping.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lora_lab import eject, inject, lora_layers
from lora_lab.adapter import scale_of
from lora_lab.batches import batch_at, collate
from lora_lab.init.check import check_positive
from lora_lab.models import load_base
from lora_lab.spectrum import factor_norm, factor_singular_values
from lora_lab.tasks import encode, load
from lora_lab.train import learning_rate, mean_loss

IDLE = 120.0  # seconds
RULES = ("lora", "rslora")
OPTIMIZERS = ("adam", "sgd")
TASK, TARGETS, BATCH, WARMUP, CLIP = "support_desk", "all-linear", 16, 0.05, 1.0
SHOWN = "model.layers.1.self_attn.q_proj"  # the layer whose spectrum is reported


@dataclass(frozen=True)
class Settings:
    """One run on the support desk, all linear layers adapted, batches of 16, the schedule of `lora_lab.train`."""

    rank: int = 8
    alpha: float = 16
    rule: str = "lora"
    optimizer: str = "adam"
    lr: float = 1e-2
    steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a setting outside its limits; the model has a word in the rank when the run starts."""
        for name, options in (("rule", RULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(options)}")
        for name in ("rank", "steps"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number from 1 up, got {getattr(self, name)!r}")
        for name in ("alpha", "lr"):
            check_positive(getattr(self, name), name)

    @property
    def scale(self) -> float:
        """s = alpha / rank, or alpha / sqrt(rank)."""
        return scale_of(self.rank, self.alpha, self.rule == "rslora")

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


class Diverged(ValueError):
    """A loss or a gradient that is not a number any more."""


def events(settings: Settings, model, tokenizer) -> Iterator[dict[str, Any]]:
    """Train, and tell each step. The model is given back as it was, whenever the caller stops asking.

    Raises Diverged when the loss is not finite any more, ValueError for what `inject` refuses.
    """
    torch.manual_seed(settings.seed)
    examples = encode(load(TASK, "train"), tokenizer)
    inject(model, TARGETS, settings.rank, settings.alpha, rslora=settings.rule == "rslora")
    try:
        yield {"kind": "start"}
        yield from _steps(settings, model, examples)
        layer = lora_layers(model)[SHOWN]
        validation = mean_loss(model, encode(load(TASK, "validation", limit=64), tokenizer))
        yield {
            "kind": "done",
            "validation": validation,
            "norm": _norm(model),
            "norm_W": math.sqrt(sum(each.base.weight.square().sum().item() for each in lora_layers(model).values())),
            "spectrum": _spectrum(layer),
        }
    finally:
        eject(model)


def _steps(settings: Settings, model, examples: list[dict]) -> Iterator[dict[str, Any]]:
    layers = list(lora_layers(model).values())
    factors = {name: [getattr(layer, name) for layer in layers] for name in "AB"}
    both = factors["A"] + factors["B"]
    made = torch.optim.AdamW if settings.optimizer == "adam" else torch.optim.SGD
    optimizer = made(both, lr=settings.lr, weight_decay=0.0)
    model.train()
    try:
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = learning_rate(step, settings.steps, settings.lr, WARMUP)
            optimizer.zero_grad(set_to_none=True)
            loss = model(**collate(batch_at(examples, BATCH, settings.seed, step))).loss
            value = loss.item()
            if not math.isfinite(value):
                raise Diverged(_advice(settings, f"the loss is {value}", step))
            loss.backward()
            norms = {
                f"grad_{name}": torch.nn.utils.get_total_norm([p.grad for p in factors[name]]).item() for name in "AB"
            }
            if not all(map(math.isfinite, norms.values())):
                raise Diverged(_advice(settings, "a gradient is not finite", step))
            torch.nn.utils.clip_grad_norm_(both, CLIP)
            optimizer.step()
            yield {"kind": "step", "step": step + 1, "loss": value, **norms, "norm": _norm(model)}
    finally:
        model.eval()


def _advice(settings: Settings, what: str, step: int) -> str:
    return (
        f"{what} at step {step + 1}: learning rate {settings.lr:g} is too high for a scale of {settings.scale:.3g}. "
        "Lower one of them."
    )


def _norm(model) -> float:
    """‖ΔW‖ over all adapted layers."""
    return math.hypot(*(factor_norm(layer.A, layer.B, layer.scale) for layer in lora_layers(model).values()))


def _spectrum(layer) -> list[float]:
    return factor_singular_values(layer.A, layer.B, layer.scale).tolist()


def serve(lines: Iterator[str], tell: Callable[[dict], None], idle: float = IDLE) -> None:
    """Run what the lines ask for, one after the other, until they end or `idle` seconds pass without one."""
    waiting: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in lines:
            waiting.put(line)
        os._exit(0)  # whoever steered is gone; nothing here is worth finishing

    threading.Thread(target=read, name="orders", daemon=True).start()
    base = None
    while True:
        try:
            line = waiting.get(timeout=idle)
        except queue.Empty:
            return
        try:
            base = base or load_base(device="cpu")
            for event in events(Settings(**json.loads(line)), *base):
                tell(event)
        except Exception as error:  # whatever it is, the reader gets one sentence
            text = str(error).strip().split("\n")[0] or type(error).__name__
            tell({"kind": "error", "says": text[0].upper() + text[1:]})


def main() -> None:
    """The process."""
    # Stray prints must not mix with the events.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1)
    sys.stdout = sys.stderr
    if hasattr(os, "nice"):
        os.nice(5)  # the sliders come first

    def tell(event: dict) -> None:
        out.write(json.dumps(event) + "\n")

    serve(iter(sys.stdin.readline, ""), tell)


if __name__ == "__main__":
    main()
