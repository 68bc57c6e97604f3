"""A step of nbgrader's feedback: secret seeds are blotted out of tracebacks, which quote the cell that failed.

Secret are the seeds between the marks of the hidden tests, and only those: a seed of the learner's own stays readable.

nbgrader_config.py of a release names it; nbgrader's own ClearHiddenTests, right after it, takes the tests out.
"""

import re

from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from lora_lab.course.release import BEGIN, END

_HIDDEN = re.compile(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", re.DOTALL)
_SEED = re.compile(r"\bseed=(\d+)")


class HideSeeds(NbGraderPreprocessor):
    """Replaces every seed of a cell's hidden tests, wherever the cell's outputs repeat it."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        """Blot out the secret seeds of one cell, in place."""
        hidden = " ".join(_HIDDEN.findall(cell.source)) if cell.cell_type == "code" else ""
        for seed in sorted(set(_SEED.findall(hidden))):
            # Not \b: in a coloured traceback the number follows the letter m of an escape sequence.
            whole = re.compile(rf"(?<!\d){seed}(?!\d)")
            for output in cell.outputs:
                if output.output_type == "error":
                    output.traceback = [whole.sub("...", line) for line in output.traceback]
                    output.evalue = whole.sub("...", output.evalue)
                elif output.output_type == "stream":
                    output.text = whole.sub("...", output.text)
        return cell, resources
