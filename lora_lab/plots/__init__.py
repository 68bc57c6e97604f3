"""Figures from arrays: every function returns a `matplotlib.figure.Figure`; `show` puts one into the notebook.

    figure in the house style:  with plots.style(): fig, ax = plots.figure()
    ready-made figures:         singular_values, loss_by_rank, similarity_heatmap, matrices,
                                training_curves, bars, data_flow, stacked_bars, cost_curves, search_plot
                                init_map, spectrum_map, convergence, outcome, setup_costs
    into the notebook:          plots.show(fig, alt="one or two sentences that replace the picture")

pyplot is never used, so no figure stays open behind the reader's back. Not imported by `import lora_lab`.
"""

from lora_lab.plots.budget import cost_curves, stacked_bars
from lora_lab.plots.flow import data_flow
from lora_lab.plots.inits import convergence, init_map, outcome, setup_costs, spectrum_map
from lora_lab.plots.matrix import matrices, similarity_heatmap
from lora_lab.plots.output import png, show
from lora_lab.plots.ranks import loss_by_rank, singular_values
from lora_lab.plots.search import search_plot
from lora_lab.plots.style import COLOURS, figure, style
from lora_lab.plots.sweeps import histories, rates, sweep
from lora_lab.plots.training import bars, training_curves

__all__ = [
    "COLOURS",
    "bars",
    "convergence",
    "cost_curves",
    "data_flow",
    "figure",
    "histories",
    "init_map",
    "loss_by_rank",
    "matrices",
    "outcome",
    "png",
    "rates",
    "search_plot",
    "setup_costs",
    "show",
    "similarity_heatmap",
    "singular_values",
    "spectrum_map",
    "stacked_bars",
    "style",
    "sweep",
    "training_curves",
]
