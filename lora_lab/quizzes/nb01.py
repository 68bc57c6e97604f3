"""The quiz of notebook 01: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "A 500 × 300 update is the sum of a rank-8 matrix with entries of about 1e-3 and noise of about 1e-4 in every "
        "entry. Its numerical rank in float32 is ...",
        [
            ("8", False, "Only if the noise were below the threshold of the rank count, here about 1e-5."),
            ("300", True, "The noise fills every direction. The energy rank at 90 % is still 8 at most."),
            ("500", False, "Rank is at most the smaller side, 300."),
        ],
    ),
    (
        "The singular values are 3, 2, 1, 1. What is the Frobenius error of the best rank-2 approximation?",
        [
            ("2", False, "The discarded values are squared before they are added."),
            ("√2 ≈ 1.41", True, "√(1² + 1²)"),
            ("1", False, "That is the error in the spectral norm: the largest discarded value."),
        ],
    ),
    (
        "A run trained in a random subspace of dimension 200 reaches 90 % of full fine-"
        "tuning. What follows for ΔW of each matrix?",
        [
            ("Its rank is at most 200.", False, "The subspace is one of the whole weight vector, not of a matrix."),
            ("Nothing about its rank.", True, "Section 7: eight numbers, full rank."),
            ("It is sparse.", False, "Random directions touch every weight."),
        ],
    ),
    (
        "φ(A₁, A₂, 1, 16) = 0.10 for matrices with 160 inputs. Is that a sign of a shared direction?",
        [
            ("Yes, it is far above zero.", False, "Compare with chance, not with zero."),
            (
                "No, it is what chance gives.",
                True,
                "A random direction has 16/160 = 0.10 of its squared length in a random 16-dimensional space.",
            ),
        ],
    ),
]
