"""The small world the course lives in: its corpus, tokenizer, base model and tasks, each made by one seeded command.

In reading order:  words -> facts, stories, drills, instructions -> corpus -> tokenizer -> pretrain -> measure
and for the tasks: desk, newcomers, cipher -> make_tasks -> measure_tasks.
"""
