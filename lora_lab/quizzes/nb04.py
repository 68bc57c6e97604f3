"""The quiz of notebook 04: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "A recipe says: rank 16, alpha 16, `use_rslora=True`. You train with the plain rule alpha/r at rank 16. "
        "Which alpha gives the same layer?",
        [
            ("16", False, "That would be s = 1. The recipe's scale is 16 / 4 = 4."),
            ("64", True, "The recipe's s is 16 / sqrt(16) = 4, and 64 / 16 = 4."),
            ("4", False, "That would be s = 0.25: the root belongs to the rank, and the recipe's s is larger than 1."),
        ],
    ),
    (
        "You use Adam, alpha fixed, and the rule alpha/r. You go from rank 8 to rank 32. What happens to the gain "
        "of the first step?",
        [
            (
                "It falls to a quarter, because s does.",
                False,
                "s falls to a quarter, but four times as many directions add up their gains.",
            ),
            ("It stays about the same.", True, "The gain goes like s times r, and s is alpha/r."),
            (
                "It falls to a sixteenth.",
                False,
                "s squared would count under SGD, and even there r directions add up: a quarter.",
            ),
        ],
    ),
    (
        "With Adam you double alpha and leave the rest. Apart from rounding, epsilon, clipping and weight decay, "
        "this is the same run as ...",
        [
            (
                "doubling the learning rate.",
                False,
                "That moves A twice as fast as well. Only the first step is the same.",
            ),
            (
                "a LoRA+ ratio twice as high.",
                True,
                "The layer sees s B only. Adam moves s B by s times the rate, whatever the size of the gradient.",
            ),
            ("doubling the rank.", False, "That would add directions, and halve s under alpha/r."),
        ],
    ),
    (
        "One run with rank 64 has a test loss of 0.90, one with rank 8 has 0.95. The standard deviation from seed to "
        "seed is 0.15. What do you know?",
        [
            ("Rank 64 is better.", False, "The difference is a third of what the seed alone does."),
            (
                "Nothing about the ranks.",
                True,
                "Two single runs that differ by less than the spread of seeds cannot rank anything.",
            ),
            ("Rank 8 overfits less.", False, "Neither run says anything about overfitting."),
        ],
    ),
    (
        "The loss began at 7, was 15 at step 3, and since step 10 has crept from 6 to 5. What do you do?",
        [
            ("Raise the learning rate.", False, "A rate that is too low never makes the loss leap to twice its start."),
            (
                "Lower the learning rate.",
                True,
                "The leap broke the model, and what is left of its gradients hardly helps.",
            ),
            ("Raise the rank.", False, "Capacity has nothing to do with a leap at step 3."),
        ],
    ),
]
