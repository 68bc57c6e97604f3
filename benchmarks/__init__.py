"""Ours beside PEFT's, at real sizes: `python -m benchmarks [topic ...] [--quick] [--out FILE]`.

A topic is a file here with a function `cases(quick) -> Iterator[Case]`. The files, in the order of reading: `timing`
(how a case is measured), `__main__` (which cases, the table, the JSON), then the topics.
"""

import os

# Read when torch is loaded: its profiler, which counts memory on the CPU, would report its own start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
