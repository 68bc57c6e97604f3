"""The page to keep: for each choice the advice, its evidence, what would overturn it. Figures come from outside."""

from collections.abc import Mapping

# choice -> (advice, strength of the evidence, what would change our mind)
ADVICE = {
    "Learning rate": (
        "tune it first, well beyond its neighbours; LoRA wants a higher one than full fine-tuning",
        "direction strong, size moderate: 2 tasks, 1 model, rates chosen on one seed",
        "a tuned pair in which LoRA's rate is not higher",
    ),
    "Rule α/r, Adam": (
        "fix alpha, keep the rate when the rank changes",
        "strong for step 1 (derived); moderate for runs: 1 task, a grid of factor 2",
        "a best rate that moves with the rank by more than the grid's step",
    ),
    "Rule α/√r, Adam": (
        "as good; at a high rank, try lower rates too",
        "moderate: 3 seeds, 1 task, a grid of factor 2",
        "one rate that serves all ranks",
    ),
    "Rank": (
        "the smallest that does; here no rank can be told from rank 1, and PEFT's default 8 has no evidence of its own",
        "weak: 3 seeds, 1 task that needs little, small model",
        "means that stay apart at every rate that validation allows",
    ),
    "alpha = 2r": (
        "not needed: s = 2 at every rank, and the step grows with r",
        "strong for step 1 (derived)",
        "a sweep in which it keeps the best rate in place",
    ),
    "Far task, much data": (
        "give LoRA more steps, and lower rates, before you blame the rank; full training is quicker",
        "strong that it is slow, not unable: 1 task",
        "a task whose plateau no LoRA run leaves",
    ),
    "Targets": (
        "the MLP among them; q and v alone are the worst choice",
        "moderate: 3 seeds, 1 task; all linear against attention is undecided here",
        "attention ahead of the MLP at an equal budget on some task",
    ),
    "LoRA+": (
        "tune alpha or the ratio, not both",
        "one knob under Adam: exact; that it gains: not shown",
        "a ratio ahead at every rate that validation allows",
    ),
    "Few examples": (
        "watch the validation loss and stop at its lowest, whatever the rank",
        "moderate: 3 seeds, 1 task",
        "a small rank that learns the training set and does not overfit",
    ),
}


def advice_table(measured: Mapping[str, str]) -> str:
    """The table as Markdown. measured: one short text for each choice of `ADVICE`.

    Raises ValueError when a choice is missing or unknown."""
    if odd := set(ADVICE) ^ set(measured):
        raise ValueError(f"choices that are missing or unknown: {', '.join(sorted(odd))}")
    lines = ["| choice | advice | measured here | strength | what would change our mind |", "|---|---|---|---|---|"]
    for choice, (what, strength, doubt) in ADVICE.items():
        lines.append(f"| **{choice}** | {what} | {measured[choice]} | {strength} | {doubt} |")
    return "\n".join(lines)
