"""Everything about one training run in one object: counts, memory, file size, FLOPs, GPUs."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from lora_lab.budget import devices
from lora_lab.budget.architectures import config_of, skeleton
from lora_lab.budget.flops import Flops, training_flops
from lora_lab.budget.memory import KINDS, Memory, training_memory
from lora_lab.budget.optimizers import check_optimizer
from lora_lab.budget.plan import Plan
from lora_lab.budget.rules import How
from lora_lab.budget.sites import adapter_sites, check_method, count_sites
from lora_lab.budget.storage import METADATA, adapter_file_bytes, code_bytes
from lora_lab.init.check import check_positive
from lora_lab.inject import Count
from lora_lab.targets import ALL_LINEAR

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
LARGEST = 2**31  # batch and length


@dataclass(frozen=True, eq=False)
class Budget:
    """What `budget` returns. Bytes are bytes; `print` it for a table in GB (10⁹ bytes)."""

    title: str
    plan: Plan
    counts: Count
    optimizer: str
    master: bool
    codes: tuple[str, int | None, bool | None]

    @functools.cached_property
    def memory(self) -> Memory:
        return training_memory(self.plan, self.optimizer, self.master, self.codes)

    @functools.cached_property
    def flops(self) -> Flops:
        return training_flops(self.plan)

    @property
    def flops_per_step(self) -> int:
        return self.flops.total

    @property
    def flops_per_token(self) -> float:
        return self.flops.per_token

    @functools.cached_property
    def adapter_file_bytes(self) -> int:
        """Size of adapter_model.safetensors, to the byte; 0 for full fine-tuning, which has none."""
        if self.plan.full:
            return 0
        dtype, dora = self.plan.how.adapter_dtype, self.plan.method.endswith("dora")
        kind, block, double = self.codes
        standard = {"nf4": (64, True), "int8": (None, False)}[kind]
        note = {"kind": kind, "block_size": block or standard[0], "double": standard[1] if double is None else double}
        quantize = note if self.plan.quantized else None
        return adapter_file_bytes(self.plan.sites, dtype, dora, self.plan.how.library, quantize)

    @property
    def weights_file_bytes(self) -> int:
        """Tensors of the whole model in the dtype of its weights: what a checkpoint of a full fine-tune holds."""
        added = 0 if self.plan.full else self.counts.trainable
        return (self.counts.total - added) * self.plan.how.dtype.itemsize

    def fits(self, reserve: int = devices.RESERVE) -> dict[str, int]:
        """GPUs on which the peak and `reserve` fit, with the bytes left over. See `devices.fits`."""
        return devices.fits(self.memory.peak, self.plan.how.autocast or self.plan.how.dtype, reserve)

    def seconds(self, gpu: str, tokens: float | None = None, mfu: float = 0.4) -> float:
        """Time of one step, or of a run over so many tokens, on a GPU of `GPUS` that reaches `mfu` of its peak."""
        flops = self.flops_per_step if tokens is None else self.flops_per_token * check_positive(tokens, "tokens")
        return devices.seconds(flops, gpu, mfu)

    def cost(self, gpu: str, tokens: float, price_per_hour: float, mfu: float = 0.4) -> float:
        """Price of a run over so many tokens, in the currency of `price_per_hour`."""
        return self.seconds(gpu, tokens, mfu) / 3600 * check_positive(price_per_hour, "price_per_hour")

    def saved_by_layer(self) -> dict[str, int]:
        """What one decoder layer in the middle keeps for its backward pass: bytes by operation, in order."""
        found: dict[str, int] = {}
        middle = self.plan.pieces[-2].tape
        for buffer, name in middle.saved().items():
            if buffer.nbytes:
                found[name] = found.get(name, 0) + buffer.nbytes
        return found

    def __str__(self) -> str:
        peak, c = self.memory.at_peak, self.counts
        rows = [("trains", f"{c.trainable:,} of {c.total:,} parameters ({c.percent:.4f} %)")]
        rows.append((f"memory, at its peak ({self.memory.worst})", f"{self.memory.peak / 1e9:9.2f} GB"))
        rows += [(f"  {kind}", f"{peak[kind] / 1e9:9.2f} GB") for kind in KINDS if peak[kind]]
        if self.adapter_file_bytes:
            rows.append(("adapter file", f"{self.adapter_file_bytes / 1e6:9.2f} MB"))
        rows.append(("FLOPs of a step", f"{self.flops_per_step / 1e12:9.2f} TFLOP"))
        rows.append(("fits on", ", ".join(self.fits()) or "none of the GPUs known here"))
        width = max(len(name) for name, _ in rows)
        return "\n".join([self.title, *(f"{name:{width}}  {text}" for name, text in rows)])


def budget(
    model: Any = "Llama-3-8B",
    method: str = "lora",
    rank: int = 16,
    targets: str | Iterable[str] = ALL_LINEAR,
    *,
    target_parameters: Iterable[str] = (),
    optimizer: str = "adamw",
    dtype: str | torch.dtype = "bfloat16",
    batch: int = 1,
    length: int = 1024,
    checkpointing: bool = False,
    attention: str = "sdpa",
    adapter_dtype: str | torch.dtype = "float32",
    autocast: str | torch.dtype | None = None,
    dropout: float = 0.0,
    fused: bool = False,
    master: bool = False,
    codes: str = "nf4",
    block_size: int | None = None,
    double: bool | None = None,
    device: str = "cuda",
    library: str = "lora_lab",
) -> Budget:
    """What it takes to train `model`, without loading it.

    Args:
        model: a name in `MODELS`, a transformers config, or a model (of which only the config is read).
        method: "full", "lora", "dora", "qlora" or "qdora": q for weights in `codes`, all linear layers but the head.
        rank, targets, target_parameters: as in `adapter_sites`. Ignored for "full".
        optimizer: one of `OPTIMIZERS`. master: it keeps fp32 copies of half-precision parameters.
        dtype: of the weights (for q methods, of what is not in codes, and of the computation).
        batch, length: sequences in a step, and tokens in each.
        checkpointing: of every decoder layer (transformers' activation_checkpointing_enable).
        attention: "sdpa" (a flash kernel, which on a GPU wants half precision) or "eager".
        adapter_dtype: of A and B. autocast: the dtype of torch.autocast, as Trainer uses it with bf16=True.
        dropout: of the adapters' inputs. fused: adapters computed by `lora_lab.fused`.
        codes, block_size, double: how weights are quantized, as in `lora_lab.quantize.quantize`.
        device: "cuda" or "cpu". library: whose adapters, "lora_lab" or "peft" (their file, their copies in passing).

    Raises TypeError or ValueError naming value and limit, also for combinations that do not exist.
    """
    check_method(method)
    check_optimizer(optimizer)
    for name, value, allowed in (
        ("attention", attention, ("sdpa", "eager")),
        ("device", device, ("cuda", "cpu")),
        ("codes", codes, ("nf4", "int8")),
        ("library", library, tuple(METADATA)),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, value in (("batch", batch), ("length", length)):
        if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= value <= LARGEST:
            raise ValueError(f"{name} must be a whole number from 1 to {LARGEST}, got {value!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, Real) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
    if fused and (method != "lora" or dropout or library != "lora_lab"):
        raise ValueError(
            f"fused is for method 'lora' of lora_lab without dropout, got {method!r}, {library}, {dropout}"
        )
    code_bytes(1, 1, codes, block_size, double)  # raises for a bad setting
    dtype, adapter_dtype = _dtype("dtype", dtype), _dtype("adapter_dtype", adapter_dtype)
    autocast = None if autocast is None else _dtype("autocast", autocast)
    if master and (dtype if method == "full" else adapter_dtype).itemsize > 2:
        raise ValueError("master copies are for parameters that train in half precision, these are in fp32 or wider")
    targets = targets if isinstance(targets, str) else tuple(targets)
    sites = {} if method == "full" else adapter_sites(model, rank, targets, target_parameters)
    how = How(
        int(batch), int(length), dtype, adapter_dtype, autocast, attention, bool(fused), device, float(dropout), library
    )
    plan = Plan(skeleton(model), method, sites, how, bool(checkpointing))
    counts = count_sites(plan.model, sites, method)
    title = _title(model, plan, rank, targets, optimizer, codes)
    return Budget(title, plan, counts, optimizer, bool(master), (codes, block_size, double))


def _title(model: Any, plan: Plan, rank: int, targets: str | tuple[str, ...], optimizer: str, codes: str) -> str:
    how = plan.how
    parts = [model if isinstance(model, str) else config_of(model).model_type, plan.method]
    if not plan.full:
        parts.append(f"rank {rank} on {targets if isinstance(targets, str) else ', '.join(targets)}")
    parts += [optimizer, str(how.dtype).removeprefix("torch.") + (f" in {codes}" if plan.quantized else "")]
    parts.append(f"{how.batch} × {how.length} tokens" + (", checkpointing" if plan.checkpointing else ""))
    return " · ".join(parts)


def _dtype(name: str, value: str | torch.dtype) -> torch.dtype:
    found = DTYPES.get(value.removeprefix("torch.")) if isinstance(value, str) else value
    if found not in DTYPES.values():
        raise ValueError(f"{name} must be one of {', '.join(DTYPES)}, got {value!r}")
    return found
