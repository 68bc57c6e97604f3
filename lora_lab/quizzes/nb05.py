"""The quiz of notebook 05: (question, [(answer, is it right, why), ...])."""

QUESTIONS = [
    (
        "A colleague sets `init_lora_weights=None`, since she has no special wish. What does her model do at step 0?",
        [
            ("It answers like the base: None is the default.", False, "The default is True. None counts as False."),
            (
                "It answers nonsense: both factors are random.",
                True,
                "PEFT treats None like False, which leaves A and B as nn.Linear draws them.",
            ),
            ("PEFT raises an error.", False, "Nothing is said. That is what makes it a trap."),
        ],
    ),
    (
        "You add a PiSSA adapter to a model that serves three other adapters. What happens to those three?",
        [
            ("Nothing: each adapter has its own factors.", False, "The factors are their own, the base is shared."),
            (
                "They now sit on W minus PiSSA's part, and answer wrongly.",
                True,
                "The residual takes the place of W for everybody. Convert the adapter to rank 2r, or give it a base of "
                "its own.",
            ),
            (
                "They get better, since the base is easier to train.",
                False,
                "They were trained beside W, not beside a residual.",
            ),
        ],
    ),
    (
        "A table shows PiSSA ahead of the default. Both ran at the same learning rate. What do you conclude?",
        [
            ("PiSSA is better.", False, "Its factors start large, so the same rate is another step."),
            (
                "Nothing yet: each needs its own rate, several seeds, and the spread.",
                True,
                "A start changes the size of the first steps, and a rate that suits one does not suit the other.",
            ),
            ("The default is better, since it is simpler.", False, "Simplicity is no measurement either."),
        ],
    ),
    (
        "LoftQ as PEFT has it, alpha = 2r. How near to W is the start?",
        [
            ("Nearer than plain quantization by the best rank-r fit.", False, "That is so at s = 1 only."),
            (
                "As far away as without an adapter.",
                True,
                "s·BA is twice the fit, and W - Q - 2 fit has the same norm as W - Q.",
            ),
            ("Exactly at W.", False, "A rank-r fit cannot hold the whole error."),
        ],
    ),
    (
        '`get_peft_model(model, LoraConfig(init_lora_weights="eva", ...))`, and then you train. What have you trained?',
        [
            ("EVA: the config says so.", False, "The config holds no data, and EVA cannot know its directions."),
            (
                "Plain LoRA: random A and B = 0.",
                True,
                "The directions come with initialize_lora_eva_weights(model, dataloader). Before it: a placeholder.",
            ),
            ("Nothing: A is zero.", False, "A is what nn.Linear draws, so B learns at the first step."),
        ],
    ),
    (
        "An adapter was trained from `pissa_niter_16` and saved as it is. Later you load it on the original base.",
        [
            ("It works: 16 iterations find the same vectors.", False, "They are random, and near ones mix freely."),
            (
                "It is silently wrong: the base gets another residual.",
                True,
                "Convert when you save, with the factors of the start: [A; A0] and [B, -B0].",
            ),
            ("It raises an error about missing factors.", False, "All factors are there. The residual is another."),
        ],
    ),
]
