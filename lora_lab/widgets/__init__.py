"""Live explorers and quizzes for notebooks, with a static picture or text where no kernel runs.

    rank_explorer(matrices)        truncate a matrix to rank r and see what is lost
    sample_matrices(rows, cols)    a picture and pure noise, to compare with
    rank_alpha_explorer(...)       what rank, alpha and the scaling rule do to s·BA
    quiz(question, options)        a question with an explanation for every answer

Needs ipywidgets and matplotlib, so `import lora_lab` leaves it alone.
"""

from lora_lab.widgets.canvas import BlitCanvas
from lora_lab.widgets.explorer import Explorer
from lora_lab.widgets.quiz import Quiz, quiz
from lora_lab.widgets.rank import RankExplorer, rank_explorer, sample_matrices
from lora_lab.widgets.rank_alpha import RankAlphaExplorer, rank_alpha_explorer

__all__ = [
    "BlitCanvas",
    "Explorer",
    "Quiz",
    "RankAlphaExplorer",
    "RankExplorer",
    "quiz",
    "rank_alpha_explorer",
    "rank_explorer",
    "sample_matrices",
]
