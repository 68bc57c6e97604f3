"""The budget explorer: what a training run costs, before it is started. All numbers are `lora_lab.budget`'s.

    peak = weights + adapter + master copies + optimizer + gradients + activations + logits + workspace, when it is most
    fits where peak + 1 GiB <= a GPU's memory          hours = FLOPs of a token · tokens / (peak FLOPs · mfu)

Skeletons of the models are built once, when the explorer is. After that a control costs some arithmetic and a blit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from lora_lab import plots
from lora_lab.budget import GPUS, KINDS, OPTIMIZERS, adapter_file_bytes, budget, skeleton, target_table
from lora_lab.budget.devices import RESERVE
from lora_lab.plots.budget import kind_style
from lora_lab.plots.style import GREY, WIDTH
from lora_lab.targets import ALL_LINEAR
from lora_lab.widgets.explorer import LABELLED, Explorer, check_start, dropdown, slider
from lora_lab.widgets.known_runs import QV, Known, known_runs

HEIGHT = 4.6  # inches
SCALES = (20.0, 60.0, 160.0, 500.0, 1600.0, 5000.0)  # GB: the ends that the axis can have
EXPLORED = (
    "Llama-3.2-1B",
    "Llama-3.2-3B",
    "LLaMA-7B",
    "Mistral-7B",
    "Llama-3-8B",
    "Llama-2-70B",
    "Qwen3-8B",
    "Gemma-2B",
    "Phi-3-mini",
    "GPT-2-XL",
    "GPT-NeoX-20B",
    "Mixtral-8x7B",
)
MASTER = "full + fp32 master copy"
METHODS = ("full", MASTER, "lora", "dora", "qlora", "qdora")
RANKS = (1, 2, 4, 8, 10, 16, 32, 64, 128, 256)
BATCHES, LENGTHS = (1, 2, 4, 8, 16, 32, 64), (128, 256, 512, 768, 1024, 2048, 4096, 8192)
TOKENS = {"1 million": 1e6, "10 million": 1e7, "100 million": 1e8, "1 billion": 1e9, "10 billion": 1e10}
NOTHING = "own setting"


def budget_explorer(
    model: str = "Llama-3-8B",
    method: str = "lora",
    rank: int = 16,
    batch: int = 1,
    length: int = 1024,
    models: Iterable[str] = EXPLORED,
) -> BudgetExplorer:
    """Explore what a run costs: model, method, rank, targets, dtype, optimizer, batch, length, checkpointing, time.

    models: names of `lora_lab.budget.MODELS` to choose from. The others: where the controls start.
    Raises ValueError for a start that the controls cannot be set to."""
    return BudgetExplorer(model, method, rank, batch, length, models)


class BudgetExplorer(Explorer):
    """See `budget_explorer`. Every control is an attribute; `run` is the `Budget` of the present setting, None where
    there is none, and `problem` then says why."""

    def __init__(self, model: str, method: str, rank: int, batch: int, length: int, models: Iterable[str]) -> None:
        models = tuple(models)
        sizes = {"rank": (rank, RANKS), "batch": (batch, BATCHES), "length": (length, LENGTHS)}
        check_start(model=(model, models), method=(method, METHODS), **sizes)
        for name in models:
            skeleton(name)  # kept there: no control waits for one
        self._targets = {name: _targets(name) for name in models}
        self._known = known_runs(models, RANKS)
        self._make_controls(model, method, rank, batch, length, models)
        self._busy = False
        self._solve()
        with plots.style():
            fig = self._figure()
        moving = [*self._parts, *self._says, *self._fits, self._need, self._counted, self._head]
        self._assemble(fig, moving, self._controls)

    @property
    def setting(self) -> dict[str, Any]:
        """What the controls are set to, as arguments for `lora_lab.budget.budget`."""
        half = self.dtype.value != "float32"
        return {
            "model": self.model.value,
            "method": "full" if self.method.value == MASTER else self.method.value,
            "rank": self.rank.value,
            "targets": self._targets[self.model.value][self.targets.value],
            "optimizer": self.optimizer.value,
            "dtype": self.dtype.value,
            "batch": self.batch.value,
            "length": self.length.value,
            "checkpointing": self.checkpointing.value,
            "master": self.method.value == MASTER and half,
        }

    @property
    def known(self) -> Known | None:
        """The recorded or published run that the controls are set to, if it is one."""
        return self._known.get(self.recorded.value)

    @property
    def file_bytes(self) -> int:
        """Of PEFT's adapter_model.safetensors; of the whole model's weights for full fine-tuning."""
        if self.run.plan.full:
            return self.run.weights_file_bytes
        return adapter_file_bytes(self.run.plan.sites, dora=self.run.plan.method.endswith("dora"))

    @property
    def hours(self) -> float:
        """On the one GPU that is chosen, whether or not the run fits it."""
        return self.run.seconds(self.gpu.value, TOKENS[self.tokens.value], self.mfu.value) / 3600

    def readout(self) -> str:
        """The numbers for the present setting, as HTML."""
        if self.run is None:
            return f"<b>No such run.</b> {self.problem}"
        c, peak = self.run.counts, self.run.memory.peak
        file = "checkpoint" if self.run.plan.full else "adapter file"
        fits = ", ".join(self.run.fits()) or "none of these GPUs alone"
        lines = [
            f"Trains <b>{c.trainable:,}</b> of {c.total:,} parameters (<b>{c.percent:.4f} %</b>). {file.capitalize()}: "
            f"<b>{_size(self.file_bytes)}</b>.",
            f"Peak <b>{peak / 1e9:,.2f} GB</b>, in the {self.run.memory.worst}. Fits on: {fits}.",
            f"{self.tokens.value} tokens on one {self.gpu.value} at mfu {self.mfu.value:.2f}: "
            f"<b>{_time(self.hours)}</b> (mfu is an assumption).",
            self._compared(),
        ]
        return "<br>".join(lines)

    def _compared(self) -> str:
        known = self.known
        if known is None:
            return "<small>Predicted. No GPU has run this setting for the course.</small>"
        if known.peak:
            off = 100 * (self.run.memory.peak / known.peak - 1)
            return (
                f"Counted tensor by tensor, without a GPU: <b>{known.peak / 1e9:,.2f} GB</b> ({off:+.4f} % predicted)."
            )
        more, larger = self.run.counts.trainable - known.parameters, self.file_bytes - known.file
        return (
            f"Published: <b>{known.parameters:,}</b> parameters ({more:+,} here) and <b>{known.file:,}</b> bytes "
            f"({larger:+,} here)."
        )

    def alt(self) -> str:
        """The text alternative for the present setting."""
        if self.run is None:
            return f"No such run: {self.problem}"
        c, at = self.run.counts, self.run.memory.at_peak
        parts = ", ".join(f"{kind} {size / 1e9:,.1f}" for kind, size in at.items() if size > 5e7)
        fits = ", ".join(self.run.fits()) or "none of them"
        return (
            f"A stacked bar of the memory of {self.run.title}: {self.run.memory.peak / 1e9:,.1f} GB at the worst "
            f"moment, in GB {parts}. Below it the memory of nine GPUs; with 1 GiB in reserve it fits on {fits}. "
            f"{c.percent:.4f} % of the parameters train; the file has {_size(self.file_bytes)}."
        )

    # How a control acts

    def _changed(self, change: Any) -> None:
        with self._lock:
            if self._busy:
                return
            self._busy = True  # what is set here would call this again
            try:
                if change["owner"] is self.recorded:
                    self._adopt(self.known)
                elif change["owner"] not in (self.gpu, self.tokens, self.mfu):
                    self.recorded.value = NOTHING
                if change["owner"] in (self.model, self.recorded):
                    self._offer_targets()
                self._solve()
            finally:
                self._busy = False
            self._refresh()

    def _adopt(self, known: Known | None) -> None:
        """Set the controls to a known run."""
        if known is None:
            return
        self.model.value = known.setting["model"]
        self._offer_targets()
        for name in ("method", "rank", "optimizer", "dtype", "batch", "length", "checkpointing"):
            getattr(self, name).value = known.setting[name]
        offered = self._targets[self.model.value]
        wanted = known.setting["targets"]
        self.targets.value = next(
            name for name, targets in offered.items() if targets == wanted or set(targets) == set(wanted)
        )

    def _offer_targets(self) -> None:
        offered = list(self._targets[self.model.value])
        if list(self.targets.options) != offered:
            kept = self.targets.value
            self.targets.options = offered
            self.targets.value = kept if kept in offered else offered[0]

    def _solve(self) -> None:
        self.run, self.problem = None, ""
        try:
            self.run = budget(**self.setting)
            peak = self.run.memory.peak / 1e9
        except ValueError as error:
            self.run, self.problem, peak = None, f"{error}.", 0.0
        self._scale = next((end for end in SCALES if end >= 1.06 * peak), 1.06 * peak)

    # The picture

    def _figure(self) -> Figure:
        fig = Figure(figsize=(WIDTH, HEIGHT))
        top = fig.add_axes((0.2, 0.775, 0.64, 0.12))
        low = fig.add_axes((0.2, 0.115, 0.64, 0.44))
        self._axes = (top, low)
        self._head = fig.text(0.012, 0.955, "", weight="bold", size=10.5, va="center")
        self._parts = [top.add_patch(Rectangle((0, -0.4), 0, 0.8, lw=0.5, **kind_style(i))) for i in range(len(KINDS))]
        (self._counted,) = top.plot([], [], linestyle="", marker="v", markersize=8, color="black", clip_on=False)
        top.set(ylim=(-0.5, 0.62), yticks=[0], yticklabels=["this run"])
        top.tick_params(labelbottom=False)
        self._says = [self._legend_entry(fig, i, kind) for i, kind in enumerate(KINDS)]
        rows = range(len(GPUS))
        low.barh(rows, [gpu.memory / 1e9 for gpu in GPUS.values()], height=0.6, color="#d5e3ee", edgecolor=GREY, lw=0.6)
        low.set_yticks(rows, list(GPUS))
        low.text(1.02, -1.05, "fits?", transform=low.get_yaxis_transform(), va="center", size=9, weight="bold")
        low.set(ylim=(len(GPUS) - 0.45, -0.55), xlabel="GB (the line: this run, and 1 GiB in reserve)")
        self._need = low.axvline(0, color="black", linestyle="--", marker="", linewidth=1.6)
        blended = low.get_yaxis_transform()
        self._fits = [low.text(1.02, row, "", transform=blended, va="center", size=9) for row in rows]
        for ax in self._axes:
            ax.grid(axis="y", visible=False)
        return fig

    def _legend_entry(self, fig: Figure, index: int, kind: str) -> Text:
        x, y = 0.015 + 0.248 * (index % 4), 0.71 - 0.05 * (index // 4)
        fig.add_artist(Rectangle((x, y - 0.014), 0.018, 0.028, transform=fig.transFigure, lw=0.5, **kind_style(index)))
        fig.text(x + 0.09, y, kind, size=8.5, va="center")
        return fig.text(x + 0.085, y, "", size=8.5, va="center", ha="right", weight="bold")

    def _move(self) -> bool:
        at: Mapping[str, int] = self.run.memory.at_peak if self.run else dict.fromkeys(KINDS, 0)
        left = 0.0
        for patch, says, kind in zip(self._parts, self._says, KINDS, strict=True):
            size = at[kind] / 1e9
            patch.set_x(left)
            patch.set_width(size)
            left += size
            says.set_text(f"{size:,.{2 if size < 100 else 0}f}" if size else "–")
        peak = self.run.memory.peak if self.run else 0
        self._need.set_xdata([(peak + RESERVE * bool(peak)) / 1e9] * 2)
        fits = self.run.fits() if self.run else {}
        dtype = getattr(torch, self.dtype.value)
        for says, (name, gpu) in zip(self._fits, GPUS.items(), strict=True):
            able = gpu.bf16 or dtype != torch.bfloat16
            room = f"✓ {fits[name] / 1e9:,.1f} left" if name in fits else "–"
            says.set_text(room if able else "no bf16")
        counted = self.known.peak if self.known and self.known.peak and self.run else None
        self._counted.set_data(*(([counted / 1e9], [0.52]) if counted else ([], [])))
        marked = ", ▼ counted" if counted else ""
        self._head.set_text(f"{peak / 1e9:,.1f} GB at the worst moment{marked}" if self.run else "no such run")
        rescaled = self._axes[0].get_xlim()[1] != self._scale
        for ax in self._axes:
            ax.set_xlim(0, self._scale)
        return rescaled

    def _make_controls(
        self, model: str, method: str, rank: int, batch: int, length: int, models: tuple[str, ...]
    ) -> None:
        self.recorded = dropdown("known runs", [NOTHING, *self._known], NOTHING, 640)
        self.model, self.method = dropdown("model", models, model, 220), dropdown("method", METHODS, method, 220)
        self.targets = dropdown("targets", self._targets[model], "all linear", 220)
        self.dtype = dropdown("dtype", ("bfloat16", "float16", "float32"), "bfloat16", 160)
        self.optimizer = dropdown("optimizer", OPTIMIZERS, "adamw", 220)
        self.rank, self.batch = slider("rank", RANKS, rank), slider("batch", BATCHES, batch)
        self.length = slider("tokens in a sequence", LENGTHS, length)
        self.checkpointing = ipywidgets.Checkbox(value=False, description="checkpointing", indent=False)
        self.checkpointing.layout.width = "140px"
        self.gpu = dropdown("GPU for the hours", GPUS, "A100 80GB", 260)
        self.tokens = slider("tokens in all", TOKENS, "10 million")
        self.mfu = ipywidgets.FloatSlider(
            0.4, min=0.05, max=0.6, step=0.05, description="mfu", style=LABELLED, layout={"width": "260px"}
        )
        first = [self.recorded, self.model, self.method, self.targets, self.dtype, self.optimizer, self.checkpointing]
        self._controls = [*first, self.rank, self.batch, self.length, self.gpu, self.tokens, self.mfu]


def _targets(model: str) -> dict[str, str | tuple[str, ...]]:
    """What can be adapted, by a name for people."""
    table = target_table(model)
    offered: dict[str, str | tuple[str, ...]] = {"all linear": ALL_LINEAR}
    for label, role in (("attention", "attention"), ("MLP", "mlp")):
        if names := table.names(role):
            offered[label] = tuple(names)
    if set(QV) <= set(table.names("attention")):
        offered["query and value"] = QV
    return offered


def _size(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e10 else f"{nbytes / 1e6:,.1f} MB"


def _time(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:,.1f} hours" if hours < 48 else f"{hours / 24:,.1f} days"
