"""The quiz of notebook 06: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "Trainer's log says loss 0.0 and grad_norm nan from step 200 on. What happened?",
        [
            ("The task is learned perfectly.", False, "A perfect model has a gradient of 0, not nan."),
            (
                "The loss is nan, and the log hides it.",
                True,
                "logging_nan_inf_filter leaves nan out of the logged loss, and 0 is what remains.",
            ),
            ("The learning rate has reached 0.", False, "Then loss and gradient would stay numbers."),
        ],
    ),
    (
        "A callback prints the gradient norm in on_step_end, and it is always 0.0. Why?",
        [
            ("The base is frozen.", False, "The factors of the adapter have gradients all the same."),
            (
                "The gradients were thrown away before it was asked.",
                True,
                "The step ends with zero_grad. on_pre_optimizer_step comes in time.",
            ),
            ("B is 0 at the start.", False, "That makes the gradient of A zero, and only in the first step."),
        ],
    ),
    (
        "In the labels of a training row the prompt is -100 and the last token of the answer, the end token, is too. "
        "What will the model do?",
        [
            ("Write an answer and go on without an end.", True, "It was never asked to predict the end token."),
            ("Write nothing.", False, "Every other token of the answer was learned."),
            ("Repeat the prompt.", False, "The prompt was not learned either."),
        ],
    ),
    (
        "You resume a run from a checkpoint with learning_rate set to a tenth. Which rate does the next step use?",
        [
            ("A tenth of the old one.", False, "The scheduler's own state is loaded, and it holds the old peak."),
            (
                "The old one.",
                True,
                "The states of optimizer and scheduler are part of the checkpoint, and they win over the argument.",
            ),
            ("Zero, until a new warm-up.", False, "The schedule goes on where it stood."),
        ],
    ),
    (
        "A list of seven Llama names is used on Mixtral under transformers 5. What does PEFT do?",
        [
            ("It refuses, because some names match nothing.", False, "It refuses only if no name matches anything."),
            (
                "It adapts the attention only, and says nothing.",
                True,
                "The experts are fused into parameters that are no linear layers, and other names of the list match.",
            ),
            ("It adapts attention and all experts.", False, "Fused experts need target_parameters."),
        ],
    ),
    (
        "Packing puts four examples into each row, and the batch size stays at 16 rows. What else changes?",
        [
            ("Nothing: the loss of each example is the same.", False, "True for the loss, but the batch is larger."),
            (
                "A step sees about four times as many examples, and an epoch has a quarter of the steps.",
                True,
                "So rate and warm-up want another look.",
            ),
            (
                "Each example now learns from its neighbours.",
                False,
                "With position_ids that start again, examples in a row do not see each other.",
            ),
        ],
    ),
]
