"""Training in practice, with PEFT, transformers' Trainer and TRL's SFTTrainer. Needs the extras `hf` and `trl`.

    data        the course's tasks for TRL, token for token those of `lora_lab.tasks.encode`
    callbacks   gradient norms of A and B, a guard against NaN, answers as they improve, exact match
    device      which arguments fit the device at hand
    targets     which layers a family of models has, and what goes wrong with lists from memory
    search      ranks and targets compared with equal budgets on a base that is proved untouched

Not imported by `import lora_lab`.
"""
