"""Predicted against measured memory of real training steps: every phase of the second step, for a grid of settings.

--device cuda   real sizes, random weights; torch's own count (max_memory_allocated), the first GPU
--device meta   the same sizes without a GPU: every tensor of the step is made on the meta device and accounted for,
                attention by the operation behind torch's flash kernel; what a kernel takes inside is not seen
--device cpu    with real numbers, meant for --tiny: the same code on shapes that any machine holds

The file says which it was. Source of the shapes: `lora_lab.budget.MODELS`.
"""

import argparse
import contextlib
import copy
import dataclasses
import gc
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from lora_lab import LoRALinear, inject
from lora_lab.budget import budget, config_of
from lora_lab.budget.measure import Accountant, CudaAccountant, measured_step
from lora_lab.paths import MEASUREMENTS
from lora_lab.world.measure import circumstances, write_json

ATTENTION_ONLY = ("q_proj", "k_proj", "v_proj", "o_proj")
GRID: list[dict[str, Any]] = [
    {"model": "Llama-3.2-1B", "method": "lora", "batch": 4, "length": 1024},
    {"model": "Llama-3.2-1B", "method": "lora", "batch": 8, "length": 2048, "checkpointing": True},
    {"model": "Llama-3.2-1B", "method": "lora", "batch": 2, "length": 1024, "attention": "eager"},
    {"model": "Llama-3.2-1B", "method": "lora", "batch": 4, "length": 1024, "autocast": "bfloat16"},
    {"model": "Llama-3.2-1B", "method": "lora", "batch": 4, "length": 1024, "fused": True},
    {"model": "Llama-3.2-1B", "method": "dora", "batch": 2, "length": 1024},
    {"model": "Llama-3.2-1B", "method": "full", "batch": 2, "length": 1024},
    {"model": "Llama-3.2-1B", "method": "full", "batch": 4, "length": 1024, "checkpointing": True, "optimizer": "sgd"},
    {"model": "Llama-3.2-3B", "method": "lora", "batch": 2, "length": 1024},
    {"model": "Llama-3.2-3B", "method": "lora", "batch": 4, "length": 1024, "targets": ATTENTION_ONLY},
    {"model": "Llama-3.2-3B", "method": "lora", "batch": 8, "length": 1024, "checkpointing": True},
    {"model": "Llama-3.2-3B", "method": "full", "batch": 1, "length": 1024, "checkpointing": True},
    {"model": "Llama-3.2-3B", "method": "qlora", "batch": 2, "length": 1024},
    {"model": "Llama-3-8B", "method": "lora", "batch": 1, "length": 1024},
    {"model": "Llama-3-8B", "method": "lora", "batch": 4, "length": 2048, "checkpointing": True},
    {"model": "Llama-3-8B", "method": "lora", "rank": 64, "batch": 2, "length": 512},
    {"model": "Llama-3-8B", "method": "qlora", "batch": 1, "length": 1024},
    {"model": "Llama-3-8B", "method": "qlora", "batch": 4, "length": 2048, "checkpointing": True},
]
NOT_ON_META = {"autocast", "fused"}  # both ask which device they run on
OUT = {"cuda": MEASUREMENTS / "memory_budget.json", "meta": MEASUREMENTS / "memory_accounting.json"}
MEASURED = {
    "cuda": "torch.cuda.max_memory_allocated of the second step, without what was allocated before",
    "meta": "bytes of all live tensors at the worst moment of the second step; no GPU was used",
    "cpu": "bytes of all live tensors at the worst moment of the second step",
}
PHASES = ("forward", "backward", "step")
ACCOUNTED = "accounted"
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-4),
}


def tiny(setting: dict[str, Any]) -> dict[str, Any]:
    """The same setting at a size for any machine: the model's family, two layers, short batches."""
    config = copy.deepcopy(config_of(setting["model"]))
    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "head_dim": 16}
    for name, size in (sizes | {"num_attention_heads": 4, "num_key_value_heads": 2}).items():
        setattr(config, name, size)
    return setting | {"model": config, "rank": 4, "batch": min(setting["batch"], 2), "length": setting["length"] // 32}


def build(setting: dict[str, Any], device: str) -> nn.Module:
    """The model of a setting with random weights, in bf16, adapted, in training mode."""
    from transformers import AutoModelForCausalLM

    attention = setting.get("attention", "sdpa")
    attention = _flash_on_meta() if device == "meta" and attention == "sdpa" else attention
    config = copy.deepcopy(config_of(setting["model"]))
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    model.train()
    method, rank = setting["method"], setting.get("rank", 16)
    if method.startswith("q"):
        _quantize(model, device)
    if method != "full":
        targets, layer = setting.get("targets", "all-linear"), LoRALinear
        if method.endswith("dora"):
            from lora_lab.variants import DoRALinear as layer
        inject(model, targets, rank, 2 * rank, layer=layer, fused=setting.get("fused", False))
        for module in model.modules() if device == "meta" else ():
            if isinstance(module, LoRALinear):
                module.to("meta")  # A was drawn on the CPU
    if setting.get("checkpointing"):
        model.activation_checkpointing_enable()
    return model


def _quantize(model: nn.Module, device: str) -> None:
    from lora_lab import quantized_linear

    if device != "meta":
        quantized_linear.quantize_model_(model)
        return
    from lora_lab.inject import replace_modules
    from lora_lab.quantize import quantize
    from lora_lab.targets import find_targets

    patterns, new = {}, {}
    for layer in find_targets(model, "all-linear").values():
        shape = tuple(layer.weight.shape)
        if shape not in patterns:  # quantized once for real, for the shapes of codes and scales
            patterns[shape] = quantize(torch.ones(shape, dtype=torch.bfloat16)).to("meta")
        own = {name: torch.empty_like(tensor) for name, tensor in patterns[shape].tensors.items()}
        new[layer] = quantized_linear.QuantizedLinear(dataclasses.replace(patterns[shape], **own))
    replace_modules(model, new)


def _flash_on_meta() -> str:
    """Register, once, attention by the operation that sdpa chooses on a GPU; returns the name for transformers."""
    from transformers import AttentionInterface

    def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        y = flash(query, key, value, dropout, True, scale=scaling)[0]
        return y.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ACCOUNTED, attention)
    return ACCOUNTED


def measure(setting: dict[str, Any], device: str) -> dict[str, Any]:
    """One setting: predicted and measured bytes of every phase, and the error of the peak in percent."""
    autocast = setting.get("autocast")
    predicted = budget(**setting, device="cuda" if device == "meta" else device)
    accountant = CudaAccountant(device) if device == "cuda" else None
    model = build(setting, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = OPTIMIZERS[setting.get("optimizer", "adamw")](parameters)
    if device == "meta":
        optimizer.defaults["foreach"] = None
        for group in optimizer.param_groups:
            group["foreach"] = True  # as on a GPU
    shape = (setting["batch"], setting["length"])
    ids = torch.randint(0, config_of(setting["model"]).vocab_size, shape, device=device)
    labels = ids.clone()
    accountant = accountant or Accountant([*model.parameters(), *model.buffers(), ids, labels])

    def loss_of() -> torch.Tensor:
        kind, mask = "cpu" if device == "meta" else device, None
        if device == "meta" and setting.get("attention") == "eager":  # transformers looks into the mask it makes itself
            mask = torch.zeros(shape[0], 1, shape[1], shape[1], dtype=torch.bfloat16, device=device)
        with torch.autocast(kind, dtype=torch.bfloat16) if autocast else contextlib.nullcontext():
            return model(input_ids=ids, labels=labels, attention_mask=mask, use_cache=False).loss

    # torch knows no autocast for the meta device, and says so by raising.
    asked = mock.patch("torch.is_autocast_enabled", return_value=False)
    with asked if device == "meta" else contextlib.nullcontext():
        found = measured_step(accountant, loss_of, optimizer)
    memory = predicted.memory
    own = {phase: sum(memory.moments[phase].values()) for phase in PHASES} | {"peak": memory.peak}
    return {
        "setting": {name: value for name, value in setting.items() if isinstance(value, str | int | bool | tuple)},
        "title": predicted.title,
        "predicted": own,
        "measured": {name: found[name] for name in own},
        "kinds_at_peak": memory.at_peak,
        "error_percent": round(100 * (memory.peak / found["peak"] - 1), 3),
    }


def run(device: str, small: bool, only: list[int] | None) -> list[dict[str, Any]]:
    """Measure the settings of the grid, all or those numbered `only`, and say what came out."""
    results = []
    for index in range(len(GRID)) if only is None else only:
        setting = tiny(GRID[index]) if small else GRID[index]
        if device == "meta" and NOT_ON_META & set(setting):
            continue
        results.append(measure(setting, device))
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
        last = results[-1]
        peaks = f"{last['predicted']['peak'] / 1e9:.3f} GB predicted, {last['measured']['peak'] / 1e9:.3f} GB measured"
        print(f"{index:2} {last['title']}: {peaks} ({last['error_percent']:+.2f} %)", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "meta", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the code")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the settings to run (default: all)")
    parser.add_argument("--out", type=Path, help="default: data/measurements/, unless --tiny or --device cpu")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here: --device meta accounts for the same steps without one")
    torch.manual_seed(0)
    about = circumstances()
    about["command"] = " ".join([about["command"], *sys.argv[1:]])
    about["hardware"]["gpu"] = "none"
    if args.device == "cuda":
        about["hardware"]["gpu"] = torch.cuda.get_device_name()
        for dtype in (torch.bfloat16, torch.float32):  # cuBLAS allocates its workspace once, before the baseline
            torch.ones(64, 64, device="cuda", dtype=dtype) @ torch.ones(64, 64, device="cuda", dtype=dtype)
    results = run(args.device, args.tiny, args.only)
    out = args.out or (None if args.tiny else OUT.get(args.device))
    if out:
        settings = {"device": args.device, "measured": MEASURED[args.device], "tiny": args.tiny, "weights": "random"}
        write_json(out, {**about, "settings": settings, "results": results})


if __name__ == "__main__":
    main()
