"""The quizzes at the end of the lessons: here and not in the notebooks, where the source would show the answers."""

from importlib import import_module


def questions(lesson: str) -> None:
    """Show the quiz of a lesson ("03"): live in a notebook with a kernel, as text with folded answers elsewhere.

    Raises ValueError if that lesson has no quiz.
    """
    from IPython.display import display

    from lora_lab.widgets import quiz

    try:
        asked = import_module(f"{__name__}.nb{lesson}").QUESTIONS
    except ModuleNotFoundError:
        raise ValueError(f"there is no quiz for lesson {lesson!r}") from None
    for question, options in asked:
        display(quiz(question, options))
