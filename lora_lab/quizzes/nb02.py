"""The quiz of notebook 02: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "A printout says that LoRA of rank 16 on all linear layers of Llama-3-8B trains 83,886,080 parameters. You "
        "count 41,943,040. What is the likeliest explanation?",
        [
            ("The printout counts A and B, you counted one of them.", False, "r (in + out) holds both already."),
            (
                "The printout was made with rank 32.",
                True,
                "The count is linear in the rank: exactly twice as many means twice the rank.",
            ),
            (
                "The printout includes the output head.",
                False,
                "The head would add 16 · (4096 + 128256), far from this.",
            ),
        ],
    ),
    (
        "“Full fine-tuning of a 70B model takes 560 GB for weights, gradients and optimizer states.” In which "
        "setting is that right?",
        [
            ("Everything in fp32.", False, "4 + 4 + 8 bytes are 16 for each parameter: 1,120 GB."),
            (
                "Mixed precision with fp32 master copies.",
                False,
                "2 + 2 + 4 + 8 bytes are 16 again. Mixed precision saves activations and time, not this memory.",
            ),
            (
                "Everything in bf16, Adam's states too.",
                True,
                "2 + 2 + 4 bytes are 8 for each of 70 billion parameters.",
            ),
        ],
    ),
    (
        "LoRA on all linear layers with fp32 adapters, beside full fine-tuning of the same bf16 model: which keeps "
        "more activations for the backward pass?",
        [
            (
                "Full fine-tuning, since it trains more.",
                False,
                "Activations do not depend on how many numbers train, but on what their gradients contain.",
            ),
            (
                "LoRA.",
                True,
                "The gradient of A needs x, and each layer casts it to a copy in fp32 of its own. Full fine-tuning "
                "keeps x once, in bf16, for all layers that read it.",
            ),
            (
                "Neither: the frozen weights keep nothing.",
                False,
                "The frozen weights do not, but A and B need x and x Aᵀ.",
            ),
        ],
    ),
    (
        "You switch from AdamW to 8-bit AdamW to fit a QLoRA run on a smaller GPU. How much does it help?",
        [
            (
                "Hardly at all.",
                True,
                "Only the adapter has states. Weights and activations decide: use checkpointing, or fewer tokens.",
            ),
            (
                "It saves a quarter of the memory.",
                False,
                "That is near the truth for full fine-tuning in bf16, not for LoRA.",
            ),
            ("It saves half of the memory.", False, "Not even in full fine-tuning: weights and gradients remain."),
        ],
    ),
    (
        "LoRA trains half a percent of the parameters. By FLOPs, a step takes about ...",
        [
            ("half a percent of a full step.", False, "The forward pass alone goes through every frozen weight."),
            (
                "two thirds of a full step.",
                True,
                "4N instead of 6N for each token: the gradients of the frozen weights are left out, but the gradient "
                "still passes through them.",
            ),
            (
                "as long as a full step.",
                False,
                "One of three products is left out. (The optimizer's traffic is saved too, which FLOPs do not show.)",
            ),
        ],
    ),
    (
        "A predicted 22 GB agrees with tensor accounting to the megabyte. Is it safe on a GPU of 24 GB?",
        [
            (
                "Yes: accounting to the megabyte leaves no doubt.",
                False,
                "It counts tensors. A GPU holds more than tensors.",
            ),
            (
                "Probably, but it was not measured.",
                True,
                "The CUDA context, cuBLAS, fragmentation and memory inside kernels are not in it. A short run tells.",
            ),
            ("No: predictions are never that good.", False, "They are, for what they count."),
        ],
    ),
]
