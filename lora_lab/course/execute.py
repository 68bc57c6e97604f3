"""Run the lessons again and keep what they print and draw, the same bytes each time.

    python -m lora_lab.course.execute [NOTEBOOK ...]   run these (default: all of notebooks/) and write their outputs
    python -m lora_lab.course.execute --check          run nothing; say whose outputs belong to other code, exit code 1

Each notebook gets a fresh kernel in its own folder, two threads, a fixed hash seed, no network and no progress bars.
Out of the result go timings, versions, live widgets and their state; in goes `lora_lab.source_hash`, by which outputs
that no longer belong to the code are known. A notebook is replaced only after all its cells have run. The figure of a
cell tagged "picture:NAME" is kept as data/pictures/NAME.png too.
"""

import argparse
import base64
import copy
import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from lora_lab import paths
from lora_lab.course.files import ENVIRONMENT_VARIABLE
from lora_lab.paths import NOTEBOOKS, PICTURES

# What could make one machine's outputs differ from another's, or leave words on stderr.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
# What a lesson must not get: passed exercises would be recorded in the reader's workspace; a figure would go nowhere.
WITHHELD = (ENVIRONMENT_VARIABLE, "MPLBACKEND")
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
WIDGET = "application/vnd.jupyter.widget-view+json"
STATIC = {"image/png", "image/svg+xml", "text/html", "text/markdown"}  # what is seen where no kernel runs
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TIMINGS = {"execution", "ExecuteTime"}


def source_hash(notebook: NotebookNode) -> str:
    """Of all code cells, in order, and of the data they read. Prose may change without a new run; these may not."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps([*sources, data_hash("\n".join(sources))]).encode()).hexdigest()[:16]


def data_hash(code: str) -> str:
    """Of the files that the outputs of `code` depend on, by name and content: the base model's weights, the tasks, and
    those measurements and published figures that the code names.

    Text counts the same with either line ending. Takes 10 to 20 ms.
    """
    recorded = [*paths.MEASUREMENTS.glob("*.json"), *paths.PUBLISHED.glob("*.csv")]
    named = [file for file in recorded if file.name in code]
    files = [paths.BASE / "model.safetensors", *paths.TASKS.glob("*.jsonl"), *named]
    whole = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        content = file.read_bytes()
        if file.suffix != ".safetensors":
            content = content.replace(b"\r\n", b"\n")
        whole.update(file.name.encode() + b"\0" + hashlib.sha256(content).digest())
    return whole.hexdigest()


def stale(notebook: NotebookNode) -> str:
    """Why the outputs do not belong to the code, or "" when they do."""
    kept = notebook.metadata.get("lora_lab", {}).get("source_hash")
    if kept is None:
        return "its outputs were never made by lora_lab.course.execute"
    if kept != source_hash(notebook):
        return "a code cell has changed since its outputs were made, or the data it reads"
    unrun = [n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code" and cell.execution_count is None]
    return f"cells {unrun} were never run" if unrun else ""


def run(notebook: NotebookNode, folder: Path, timeout: int = 600) -> NotebookNode:
    """A copy with fresh outputs, normalised. Raises nbclient's CellExecutionError when a cell fails."""
    from nbclient import NotebookClient

    done = copy.deepcopy(notebook)
    env = {name: value for name, value in os.environ.items() if name not in WITHHELD} | ENVIRONMENT
    client = NotebookClient(
        done,
        timeout=timeout,
        kernel_name=KERNEL["name"],
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    return normalise(done)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Take out, in place, what differs from run to run. Ids, tags and nbgrader's metadata stay as they are.

    Raises ValueError for a widget that leaves nothing to see where no kernel runs.
    """
    ours = notebook.metadata.get("lora_lab", {}) | {"source_hash": source_hash(notebook)}
    notebook.metadata = NotebookNode(
        {name: value for name, value in notebook.metadata.items() if name not in ("widgets", "language_info")}
        | {"kernelspec": KERNEL, "language_info": LANGUAGE, "lora_lab": ours}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        for timing in TIMINGS & set(cell.metadata):
            del cell.metadata[timing]
        if cell.cell_type == "code":
            cell.outputs = [_normalise_output(output, number) for output in cell.outputs if output.get("text") != ""]
    return nbformat.from_dict(notebook)


def _normalise_output(output: NotebookNode, cell: int) -> NotebookNode:
    if output.output_type == "stream":
        # A progress bar rewrites its line: keep what the eye would see last.
        output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    elif WIDGET in output.get("data", {}):
        del output.data[WIDGET]
        output.metadata.pop(WIDGET, None)
        if not STATIC & set(output.data):
            raise ValueError(f"cell {cell} shows a widget and no picture: on GitHub and in print nothing would be seen")
    return output


def write(notebook: NotebookNode, path: Path) -> None:
    """Replace the file, whole or not at all."""
    beside = path.with_suffix(".tmp")
    try:
        beside.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def pictures(notebook: NotebookNode) -> dict[str, bytes]:
    """PNG by file name, of the cells tagged "picture:NAME": figures that other pages show as well."""
    found = {}
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", []):
            if tag.startswith("picture:"):
                png = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
                found[f"{tag.removeprefix('picture:')}.png"] = base64.b64decode(png)
    return found


def changed_cells(before: NotebookNode, after: NotebookNode) -> list[int]:
    """Numbers of the cells whose outputs differ."""
    pairs = enumerate(zip(before.cells, after.cells, strict=True))
    return [number for number, (old, new) in pairs if old.get("outputs") != new.get("outputs")]


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 when a notebook is stale (--check) or fails."""
    parser = argparse.ArgumentParser(description="Run the lessons again and keep their outputs.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: every notebook in notebooks/")
    parser.add_argument("--check", action="store_true", help="run nothing, only report stale outputs")
    options = parser.parse_args(argv)
    paths = options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        parser.error(f"no such notebook: {', '.join(absent)}")
    failed = 0
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        if options.check:
            word = stale(notebook)
            failed += bool(word)
            print(f"{path.name}: {word or 'up to date'}")
            continue
        began = time.monotonic()
        try:
            done = run(notebook, path.resolve().parent)
        except Exception as error:  # whatever a cell raises; the other notebooks still get their turn
            failed += 1
            words = COLOURS.sub("", str(error))
            print(f"{path.name}: failed after {time.monotonic() - began:.1f} s, left as it was\n{words}", flush=True)
            continue
        write(done, path)
        for picture, content in pictures(done).items():
            PICTURES.mkdir(parents=True, exist_ok=True)
            (PICTURES / picture).write_bytes(content)
        changed = changed_cells(notebook, done)
        print(f"{path.name}: {time.monotonic() - began:.1f} s, outputs changed in cells {changed}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
