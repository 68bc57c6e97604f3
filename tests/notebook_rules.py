"""What a lesson must be before it may be committed: each rule yields what is wrong, in words. Shared by its tests."""

import re
from collections import Counter
from collections.abc import Callable, Iterator

import nbformat
from nbformat import NotebookNode

from lora_lab.course.execute import WIDGET, stale
from lora_lab.paths import ROOT

MOST_LINES = 30
SHORTEST_ALT = 20
ROOTS = "Applications|Library|Users|Volumes|app|data|etc|home|media|mnt|opt|private|root|run|scratch|srv|tmp|usr|var"
HOST_PATH = re.compile(  # where machines keep things, and where this one keeps the course
    rf"(?<![\w.:/-])/(?:{ROOTS})/|{re.escape(str(ROOT))}\b|\b[A-Za-z]:\\\w|site-packages|\.venv/"
)
WARNING = re.compile(r"\b\w*Warning\b: ")
ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
HEADING = re.compile(r"### Exercise (\d+\.\d+) · (\d+) points? · about (\d+) minutes?")
GRADE_ID = re.compile(r"(ex|check)-(\d+)-(\d+)")
PICTURE_IN_PROSE = re.compile(r"!\[(?P<markdown>[^\]]*)\]\(|<img(?P<html>[^>]*)>")

Rule = Callable[[NotebookNode], Iterator[str]]


def code_cells(notebook: NotebookNode) -> Iterator[tuple[int, NotebookNode]]:
    return ((number, cell) for number, cell in enumerate(notebook.cells) if cell.cell_type == "code")


def outputs(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    return ((f"cell {number}", output) for number, cell in code_cells(notebook) for output in cell.outputs)


def texts(output: NotebookNode) -> Iterator[str]:
    """All that a reader could read in an output."""
    yield output.get("text", "")
    yield from (str(part) for kind, part in output.get("data", {}).items() if not kind.startswith("image/"))


def is_valid(notebook: NotebookNode) -> Iterator[str]:
    if (notebook.nbformat, notebook.nbformat_minor) != (4, 5):
        yield f"format {notebook.nbformat}.{notebook.nbformat_minor}, not 4.5"
    ids = Counter(cell.get("id") for cell in notebook.cells)
    if ids.most_common(1)[0][1] > 1:
        yield "cell id {!r} stands {} times".format(*ids.most_common(1)[0])
        return  # validating would repair it, and warn
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"invalid: {str(error).splitlines()[0]}"


def is_fresh(notebook: NotebookNode) -> Iterator[str]:
    why = stale(notebook)
    if why:
        yield f"stale: {why}. Run python -m lora_lab.course.execute"


def ran_in_silence(notebook: NotebookNode) -> Iterator[str]:
    for where, output in outputs(notebook):
        if output.output_type == "error":
            yield f"{where}: error {output.ename}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"{where}: stderr {output.text[:80]!r}"
        if any(WARNING.search(text) for text in texts(output)):
            yield f"{where}: a warning in the output"


def names_no_machine(notebook: NotebookNode) -> Iterator[str]:
    sources = ((f"cell {number}", cell.source) for number, cell in enumerate(notebook.cells))
    printed = ((where, text) for where, output in outputs(notebook) for text in texts(output))
    for where, text in [*sources, *printed]:
        yield from (f"{where}: path {found[0]!r}" for found in HOST_PATH.finditer(text))
        yield from (f"{where}: memory address {found[0]!r}" for found in ADDRESS.finditer(text))


def pictures_have_words(notebook: NotebookNode) -> Iterator[str]:
    for where, output in outputs(notebook):
        data = output.get("data", {})
        for kind in (kind for kind in data if kind.startswith("image/")):
            alt = output.metadata.get(kind, {}).get("alt", "")
            if len(alt.strip()) < SHORTEST_ALT:
                yield f"{where}: {kind} with alt text {alt!r}"
        if WIDGET in data:
            yield f"{where}: a live widget was kept"
        if "<Figure size" in data.get("text/plain", ""):
            yield f"{where}: a figure shown without lora_lab.plots.show"
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            for found in PICTURE_IN_PROSE.finditer(cell.source):
                alt = found["markdown"] or re.search(r"alt=.{3}", found["html"] or "")
                if not alt:
                    yield f"cell {number}: a picture without alt text"


def fits_a_screen(notebook: NotebookNode) -> Iterator[str]:
    for number, cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        if lines > MOST_LINES:
            yield f"cell {number}: {lines} lines of code, at most {MOST_LINES} fit a screen"


def exercises_are_whole(notebook: NotebookNode) -> Iterator[str]:
    """Heading with points, then solution cell, then check cell: each once, with one id and the same points."""
    announced: dict[str, int] = {}
    solved: list[str] = []
    checked: list[str] = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            if cell.source.startswith("### Exercise") and not HEADING.match(cell.source):
                heading = cell.source.splitlines()[0]
                yield f"cell {number}: heading {heading!r} is not 'Exercise 1.2 · 2 points · about 8 minutes'"
            announced |= {found[1]: int(found[2]) for found in [HEADING.match(cell.source)] if found}
            continue
        meta = cell.metadata.get("nbgrader")
        found = GRADE_ID.fullmatch(meta.get("grade_id", "")) if meta else None
        if meta and not found:
            yield f"cell {number}: grade_id {meta.get('grade_id')!r} is neither ex-N-N nor check-N-N"
        if not found:
            continue
        name = f"{found[2]}.{found[3]}"
        if found[1] == "ex":
            solved.append(name)
            yield from _solution_cell(number, name, cell, announced)
        else:
            yield from _check_cell(number, name, cell, announced, solved)
            checked.append(name)
    for name in {*announced, *solved, *checked}:
        for word, names in (("heading", list(announced)), ("solution cell", solved), ("check cell", checked)):
            if names.count(name) != 1:
                yield f"exercise {name} has {names.count(name)} of: {word}"


def _solution_cell(number: int, name: str, cell: NotebookNode, announced: dict[str, int]) -> Iterator[str]:
    meta = cell.metadata.nbgrader
    if (meta.get("solution"), meta.get("grade"), meta.get("locked"), meta.get("schema_version")) != (
        True,
        False,
        False,
        3,
    ):
        yield f"cell {number}: ex-{name} is not marked as a solution"
    begins, ends = cell.source.count("# BEGIN SOLUTION"), cell.source.count("# END SOLUTION")
    if not begins or begins != ends:  # a class may have several blanks
        yield f"cell {number}: exercise {name} has {begins} BEGIN SOLUTION and {ends} END SOLUTION"
    if name not in announced:
        yield f"cell {number}: exercise {name} has no heading before it"


def _check_cell(
    number: int, name: str, cell: NotebookNode, announced: dict[str, int], solved: list[str]
) -> Iterator[str]:
    meta = cell.metadata.nbgrader
    if (meta.get("solution"), meta.get("grade"), meta.get("locked"), meta.get("schema_version")) != (
        False,
        True,
        True,
        3,
    ):
        yield f"cell {number}: check-{name} is not marked as a locked test"
    if meta.get("points") != announced.get(name):
        points = f"{announced.get(name)} points in the heading, {meta.get('points')} in the check"
        yield f"cell {number}: exercise {name}: {points}"
    if name not in solved:
        yield f"cell {number}: the check of exercise {name} stands before its solution"
    if not re.search(r"^check\.\w+\(", cell.source, re.MULTILINE):
        yield f"cell {number}: the check of exercise {name} calls no check"


RULES: tuple[Rule, ...] = (
    is_valid,
    is_fresh,
    ran_in_silence,
    names_no_machine,
    pictures_have_words,
    fits_a_screen,
    exercises_are_whole,
)
