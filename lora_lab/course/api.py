"""lora_lab/README.md: the public functions and classes of the library on one page, from their docstrings.

python -m lora_lab.course.api            writes the page
python -m lora_lab.course.api --check    exits with 1 if it is not what the docstrings say
"""

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parent.parent / "README.md"
# In reading order, by what a reader wants to do.
CHAPTERS: dict[str, tuple[str, ...]] = {
    "A layer, and a model full of them": ("layer", "adapter", "base", "targets", "inject", "shift", "fused", "product"),
    "Where A and B start": (
        "init.table",
        "init.start",
        "init.default",
        "init.random",
        "init.gaussian",
        "init.orthogonal",
        "init.pissa",
        "init.olora",
        "init.mica",
        "init.corda",
        "init.eva",
        "init.lora_ga",
        "init.loftq",
        "init.prepare",
        "init.statistics",
        "init.components",
        "init.advisor",
        "init.costs",
        "lowrank",
    ),
    "Training": ("train", "batches", "checkpoint", "modes", "variants.lora_plus"),
    "Variants and quantization": ("variants.dora", "variants.experts", "quantize", "quantized_linear"),
    "Merging, files, several adapters": (
        "merge",
        "merge_check",
        "merge_bound",
        "adapter_file",
        "adapter_format",
        "provenance",
        "peft_config",
        "combine",
        "many",
    ),
    "Looking at matrices": ("spectrum", "subspace_training"),
    "What it costs": ("budget",),
    "Models and tasks": ("models", "tasks"),
    "Training with PEFT, Trainer and TRL": (
        "practice.data",
        "practice.callbacks",
        "practice.device",
        "practice.targets",
        "practice.search",
    ),
}
HEAD = """# The library, on one page

Made from the docstrings by `python -m lora_lab.course.api`; a test fails if it is not up to date. Shapes throughout:
W (out, in); A (rank, in); B (out, rank); s = alpha / rank, or alpha / √rank with rsLoRA; y = W x + b + s·B(A x).
"""


def public(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The public functions and classes of `module`: its `__all__`, or what it defines itself without an underscore."""
    for name in getattr(module, "__all__", None) or vars(module):
        thing = getattr(module, name)
        mine = getattr(thing, "__module__", "").startswith(module.__name__)
        if not name.startswith("_") and mine and (inspect.isfunction(thing) or inspect.isclass(thing)):
            yield name, thing


def signature(thing: object) -> str:
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    for long in ("torch.nn.modules.module.", "torch.", "collections.abc.", "typing.", "nn.modules.module."):
        text = text.replace(long, "")
    return text.replace("'", "")


def indented(text: str) -> list[str]:
    return ["", "```text", *text.splitlines(), "```", ""]


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for chapter, names in CHAPTERS.items():
        lines += [f"## {chapter}", ""]
        for name in names:
            module = importlib.import_module(f"lora_lab.{name}")
            path = Path(inspect.getfile(module)).relative_to(PAGE.parent)
            path = path.parent if path.name == "__init__.py" else path
            lines += [f"### [`{path.as_posix()}`]({path.as_posix()})", *indented(inspect.getdoc(module) or "")]
            for title, thing in public(module):
                lines += [f"**`{title}{signature(thing)}`**", *indented(inspect.getdoc(thing) or "")]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the page of the library's public functions.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    check = parser.parse_args(arguments).check
    text = page()
    if check:
        stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text
        print(f"{PAGE.name} is {'out of date: python -m lora_lab.course.api' if stale else 'up to date'}")
        return int(stale)
    beside = PAGE.with_name(f".{PAGE.name}")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
