"""Live explorers and quizzes for notebooks, with a static picture or text where no kernel runs.

    rank_explorer(matrices)        truncate a matrix to rank r and see what is lost
    sample_matrices(rows, cols)    a picture and pure noise, to compare with
    rank_alpha_explorer(...)       what rank, alpha and the scaling rule do to s·BA
    training_explorer(...)         the first step of a layer, and real runs in the background beside it
    budget_explorer(...)           parameters, memory, file, GPUs and hours of a training run
    cost_explorer(...)             hours and money, and the assumptions behind them
    init_explorer(model, batches)  where each init starts in W, and what it does to the base
    advisor_form()                 which init to take, with reasons and how good each is
    merge_explorer(model, flips)   the error of merged weights, and what it does to answers
    quiz(question, options)        a question with an explanation for every answer
    live_training.live_view(...)   a run of Trainer or SFTTrainer as it goes; imports transformers, so not from here

Needs ipywidgets and matplotlib, so `import lora_lab` leaves it alone.
"""

from lora_lab.widgets.advisor_form import AdvisorForm, advisor_form
from lora_lab.widgets.budget import BudgetExplorer, budget_explorer
from lora_lab.widgets.canvas import BlitCanvas
from lora_lab.widgets.cost import CostExplorer, cost_explorer
from lora_lab.widgets.explorer import Explorer
from lora_lab.widgets.init_explorer import InitExplorer, init_explorer
from lora_lab.widgets.merge import LiveRatios, MergeExplorer, merge_explorer
from lora_lab.widgets.quiz import Quiz, quiz
from lora_lab.widgets.rank import RankExplorer, rank_explorer, sample_matrices
from lora_lab.widgets.rank_alpha import RankAlphaExplorer, rank_alpha_explorer
from lora_lab.widgets.training import TrainingExplorer, training_explorer
from lora_lab.widgets.training_figure import Run, train_now

__all__ = [
    "AdvisorForm",
    "BlitCanvas",
    "BudgetExplorer",
    "CostExplorer",
    "Explorer",
    "InitExplorer",
    "LiveRatios",
    "MergeExplorer",
    "Quiz",
    "RankAlphaExplorer",
    "RankExplorer",
    "Run",
    "TrainingExplorer",
    "advisor_form",
    "budget_explorer",
    "cost_explorer",
    "init_explorer",
    "merge_explorer",
    "quiz",
    "rank_alpha_explorer",
    "rank_explorer",
    "sample_matrices",
    "train_now",
    "training_explorer",
]
