"""The quiz of notebook 03: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "You set A = 0 and B = 0 because zero is surely a safe start. What happens?",
        [
            (
                "The model trains, but more slowly.",
                False,
                "Neither factor ever gets a gradient: each contains the other.",
            ),
            ("Nothing ever changes.", True, "dL/dA contains B and dL/dB contains A. Both are zero, and stay zero."),
            (
                "The first step is wasted, then it trains.",
                False,
                "No step ever helps. With ONE factor at zero no step is wasted either: that factor moves in step one, "
                "and the other one from step two.",
            ),
        ],
    ),
    (
        "With SGD you double alpha and halve the learning rate. The first update of W is then ...",
        [
            ("the same.", False, "That holds for Adam. Under SGD the scale counts twice."),
            ("twice as large.", True, "The scale gives a factor of 4, the learning rate a factor of 1/2."),
            ("half as large.", False, "The scale enters the gradient of B and the product BA: 4 times, then halved."),
        ],
    ),
    (
        "After wrapping q_proj and v_proj, 540,672 of 1,064,960 parameters train. What is the first thing to look at?",
        [
            ("The rank is too high.", False, "At rank 8 the factors have 16,384 parameters in all."),
            ("The neighbours were not frozen.", True, "k_proj and o_proj have 262,144 parameters each."),
            ("The count includes the optimizer.", False, "Optimizer states are not parameters of the model."),
        ],
    ),
    (
        "A validation script merges the adapter in place, runs `model` and `merged`, and "
        "finds a difference of exactly 0.0. This shows ...",
        [
            ("that the merge was right.", False, "Both names point at the same merged model."),
            (
                "nothing.",
                True,
                "The reference must be taken before the merge. A difference of exactly zero is trustworthy only "
                "between two objects that were computed separately.",
            ),
            ("that the model runs in float64.", False, "float64 would still leave a rounding difference."),
        ],
    ),
    (
        "You have adapter_model.safetensors, but adapter_config.json is lost. What can you "
        "not recover from the tensors?",
        [
            ("The rank", False, "It is the number of rows of A."),
            ("Which layers were adapted", False, "The names of the tensors say it."),
            (
                "Alpha",
                True,
                "s = alpha/r appears nowhere in A and B. With a wrong alpha the file loads, and answers wrongly.",
            ),
        ],
    ),
]
