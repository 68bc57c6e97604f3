"""The quiz of notebook 07: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "After `merged = peft_model.merge_and_unload()` the logits of `peft_model` and `merged` differ by exactly 0.0. "
        "What have you learned?",
        [
            ("The merge is right.", False, "A sabotaged merge gives 0.0 too: both names lead to the same weights."),
            (
                "Nothing about the merge.",
                True,
                "The call works in place, so the model was compared with itself. Take the reference before it.",
            ),
            (
                "The merge was done in float64.",
                False,
                "Merged and unmerged round at other places, in float64 too: over many logits some would differ.",
            ),
        ],
    ),
    (
        "In bfloat16, W = 1.0 and s·BA = 0.002 at some entry. What does the merged entry hold?",
        [
            ("1.002", False, "Near 1 the next bfloat16 number is 1.0078, so 1.002 does not exist."),
            (
                "1.0: the update is gone.",
                True,
                "0.002 is less than half of the step of 0.0078, and the sum rounds back to 1.",
            ),
            ("1.0078", False, "The nearest number wins, and 1.002 is nearer to 1."),
        ],
    ),
    (
        "A validation in bfloat16 with atol=1e-3 on the logits fails. What should you conclude first?",
        [
            (
                "The merge is wrong.",
                False,
                "A right merge fails it too: bfloat16 alone moves logits by far more than that.",
            ),
            (
                "The tolerance may be wrong: compare the weights with their bound.",
                True,
                "The bound follows the dtype and the entry, so it can tell rounding from a mistake.",
            ),
            ("Raise atol until it passes.", False, "Then it passes whatever you merge. A tolerance needs a reason."),
        ],
    ),
    (
        "An adapter was trained beside NF4 weights. Which merge gives the function that was trained, to rounding?",
        [
            (
                "Into the original 16-bit weights.",
                False,
                "The adapter never met them: it was trained beside the quantized ones, errors included.",
            ),
            (
                "Into the dequantized weights, kept in 16 or 32 bits.",
                True,
                "They are the numbers that it was trained beside.",
            ),
            (
                "Into the codes, quantized again.",
                False,
                "The sum is rounded to codes once more: in section 6 that moved the weights by far the most.",
            ),
        ],
    ),
    (
        "Which comparison lets a NaN in the merged weights pass?",
        [
            ("`(error <= bound).all()`", False, "NaN <= bound is False, so all() is False."),
            (
                "`not (error > bound).any()`",
                True,
                "NaN > bound is False as well: nothing is found, and the check passes.",
            ),
            ("`error.max() <= tolerance`", False, "torch's max is NaN if anything is, and NaN <= tolerance is False."),
        ],
    ),
    (
        "Two adapters are merged into one base, exactly. What follows for the two tasks?",
        [
            ("Both work as before.", False, "Each was trained without the other, and both write to the same layers."),
            (
                "Nothing: each task has to be measured again.",
                True,
                "The sum of the weights is right. The answers are another question.",
            ),
            ("Both get exactly half as good.", False, "Nothing is halved: the updates add up."),
        ],
    ),
]
