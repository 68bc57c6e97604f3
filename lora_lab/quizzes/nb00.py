"""The quiz of notebook 00: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "Your adapted model answers well. A colleague loads your adapter file onto another "
        "base model of the same shapes. What do you expect?",
        [
            (
                "The same answers: the adapter holds what was learned.",
                False,
                "The adapter is a correction of one particular model.",
            ),
            (
                "It loads without an error and answers badly.",
                True,
                "The shapes fit, so nothing complains. BA corrects weights that are not there.",
            ),
            ("An error.", False, "Only shapes are checked, and they fit."),
        ],
    ),
    (
        "Which of these does LoRA leave out of training memory?",
        [
            ("The frozen weights.", False, "They are still needed for the forward and backward pass."),
            (
                "Gradients and optimizer states of the frozen weights.",
                True,
                "Notebook 02 counts them: with Adam they are the largest part.",
            ),
            ("The activations.", False, "Gradients still flow through the whole model to reach every A and B."),
        ],
    ),
]
