"""Where the course's files lie: the one home of every path.

Set LORA_LAB_ROOT when the package runs away from its clone.
"""

import os
from pathlib import Path

ROOT = Path(os.environ.get("LORA_LAB_ROOT") or Path(__file__).resolve().parent.parent)
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
BASE = DATA / "base"
TASKS = DATA / "tasks"
MEASUREMENTS = DATA / "measurements"
PICTURES = DATA / "pictures"
PUBLISHED = DATA / "published"  # figures that others measured
