"""Training real shapes on a GPU: peak memory and tokens per second, measured, beside what `lora_lab.budget` predicts.

    python -m lora_lab.experiments.gpu_training           needs CUDA; writes data/measurements/gpu_training.json
    python -m lora_lab.experiments.gpu_training --tiny    small shapes on the CPU, to try the code; writes nothing

Llama-3.2-1B, Llama-3.2-3B and Llama-3-8B with random weights: neither memory nor speed depends on what they are. Full
fine-tuning, LoRA in bf16, and LoRA beside NF4 weights, all with AdamW, on sequences without padding. Without a GPU
there is nothing to measure: the program says so, ends with status 2 and writes no file.
"""

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_lab.budget import budget, config_of
from lora_lab.experiments.memory_budget import OPTIMIZERS, build, measure, tiny
from lora_lab.paths import MEASUREMENTS
from lora_lab.world.measure import circumstances, write_json

OUT = MEASUREMENTS / "gpu_training.json"
MODELS = ("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3-8B")
METHODS = ("full", "lora", "qlora")
BATCH, LENGTH, RANK = 4, 1024, 16
WARM, TIMED = 3, 10  # steps
RESERVE = 2 * 10**9  # bytes of a GPU that its context and torch's leftovers need


def grid(models: Iterable[str] = MODELS, methods: Iterable[str] = METHODS) -> list[dict[str, Any]]:
    """Every method on every model, with checkpointing, batch, length and rank the same for all."""
    same = {"rank": RANK, "batch": BATCH, "length": LENGTH, "checkpointing": True}
    return [{"model": model, "method": method} | same for model in models for method in methods]


def throughput(setting: dict[str, Any], device: str, warm: int = WARM, timed: int = TIMED) -> dict[str, Any]:
    """Train on random tokens and time each step to its end: median seconds, tokens and floating-point operations a
    second. The operations are the budget's count; the first `warm` steps, in which kernels are chosen, do not count.

    Raises ValueError for fewer than one timed step."""
    if timed < 1 or warm < 0:
        raise ValueError(f"warm = {warm}, timed = {timed}: at least 0 and 1 steps")
    predicted = budget(**setting, device=device)
    model = build(setting, device)
    optimizer = OPTIMIZERS["adamw"]([p for p in model.parameters() if p.requires_grad])
    vocabulary = config_of(setting["model"]).vocab_size
    ids = torch.randint(0, vocabulary, (setting["batch"], setting["length"]), device=device)
    seconds = []
    for step in range(warm + timed):
        _wait(device)
        began = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _wait(device)
        if step >= warm:
            seconds.append(time.perf_counter() - began)
    middle = statistics.median(seconds)
    return {
        "seconds": [round(each, 5) for each in seconds],
        "tokens_per_second": round(ids.numel() / middle, 1),
        "flops_per_second": round(predicted.flops_per_step / middle),
    }


def compare(setting: dict[str, Any], device: str, room: int | None = None) -> dict[str, Any]:
    """One row: memory, predicted and measured, and speed. room: bytes of the GPU; what the prediction says cannot fit
    is not started, and "skipped" says so, as it does when memory ran out against the prediction."""
    predicted = budget(**setting, device=device)
    plain = {name: value for name, value in setting.items() if isinstance(value, str | int | bool)}
    row: dict[str, Any] = {"setting": plain, "title": predicted.title, "trainable": predicted.counts.trainable}
    row |= {"predicted_peak": predicted.memory.peak, "skipped": ""}
    if room is not None and predicted.memory.peak + RESERVE > room:
        return row | {"skipped": f"needs {predicted.memory.peak / 1e9:.1f} GB of {room / 1e9:.1f} GB"}
    try:
        memory = measure(setting, device)
        row |= {"measured_peak": memory["measured"]["peak"], "error_percent": memory["error_percent"]}
        _free(device)
        row |= throughput(setting, device)
    except torch.OutOfMemoryError as error:
        row["skipped"] = f"out of memory, against the prediction: {str(error).splitlines()[0]}"
    finally:
        _free(device)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text: predicted and measured peak in GB (10⁹ bytes), tokens per second, or why there are none."""
    lines = [f"{'run':<64}{'predicted':>10}{'measured':>10}{'tokens/s':>10}"]
    for row in rows:
        title = row["title"].partition(" · adamw")[0]
        head = f"{title:<64}{row['predicted_peak'] / 1e9:>10.3f}"
        tail = f"{row['measured_peak'] / 1e9:>10.3f}{row['tokens_per_second']:>10,.0f}" if not row["skipped"] else ""
        lines.append(head + (tail or f"  {row['skipped']}"))
    return "\n".join(lines)


def smaller(setting: dict[str, Any]) -> dict[str, Any]:
    """The same setting at a size for any machine."""
    made = tiny(copy.deepcopy(setting))
    return made | {"length": max(8, made["length"])}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _free(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status: 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU, to try the code; writes nothing")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    settings = grid(args.models, args.methods)
    if args.tiny:
        print("Small shapes on the CPU, to try the code. These numbers say nothing of a GPU, and are not written.")
        print(table([compare(smaller(setting), "cpu") for setting in settings]))
        return 0
    if not torch.cuda.is_available():
        print("No CUDA GPU here, so nothing was measured and nothing was written. --tiny tries the code without one.")
        print("What lora_lab.budget predicts for each run (GB, peak):")
        for setting in settings:
            print(f"  {budget(**setting).title}: {budget(**setting).memory.peak / 1e9:.1f}")
        return 2
    about = circumstances()
    about["command"] = "python -m lora_lab.experiments.gpu_training"
    about["hardware"]["gpu"] = torch.cuda.get_device_name()
    room = torch.cuda.get_device_properties(0).total_memory
    for dtype in (torch.bfloat16, torch.float32):  # cuBLAS allocates its workspace once, before anything is counted
        torch.ones(64, 64, device="cuda", dtype=dtype) @ torch.ones(64, 64, device="cuda", dtype=dtype)
    rows = []
    for setting in settings:
        rows.append(compare(setting, "cuda", room))
        print(table(rows[-1:]), flush=True)
        same = {"weights": "random", "warm": WARM, "timed": TIMED, "bytes_of_the_gpu": room}
        write_json(args.out, {**about, "settings": same, "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
