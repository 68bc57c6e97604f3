"""A step of nbgrader's feedback: secret seeds are blotted out of tracebacks, which quote the cell that failed.

nbgrader_config.py of a release names it; nbgrader's own ClearHiddenTests, right after it, takes the tests out.
"""

import re

from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

_SEED = re.compile(r"seed=(\d+)")


class HideSeeds(NbGraderPreprocessor):
    """Replaces every seed that a cell's source mentions, wherever its outputs repeat it."""

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple[NotebookNode, dict]:
        """Blot out the seeds of one cell, in place."""
        for seed in _SEED.findall(cell.source) if cell.cell_type == "code" else ():
            for output in cell.outputs:
                if output.output_type == "error":
                    output.traceback = [line.replace(seed, "...") for line in output.traceback]
                    output.evalue = output.evalue.replace(seed, "...")
                elif output.output_type == "stream":
                    output.text = output.text.replace(seed, "...")
        return cell, resources
