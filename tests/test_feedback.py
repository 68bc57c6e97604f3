"""Feedback pages: secret seeds are blotted out, and nothing else is."""

from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from lora_lab.course.feedback import HideSeeds

HIDDEN = "### BEGIN HIDDEN TESTS\ncheck.double(double, seed={})\n### END HIDDEN TESTS"


def blotted(source: str, *outputs):
    cell, _ = HideSeeds().preprocess_cell(new_code_cell(source, outputs=list(outputs)), {}, 0)
    return cell.outputs


def test_a_secret_seed_is_blotted_out_of_tracebacks_and_prints() -> None:
    coloured = "check.double(double, seed=\x1b[32m1234\x1b[39m)"
    error = new_output("error", ename="Wrong", evalue="at seed=1234", traceback=[coloured, "rows 12345, 91234"])
    printed = new_output("stream", text="seed 1234.\n")
    error, printed = blotted("check.double(double)\n" + HIDDEN.format(1234), error, printed)
    assert error.traceback == [coloured.replace("1234", "..."), "rows 12345, 91234"]
    assert error.evalue == "at seed=..."
    assert printed.text == "seed ....\n"


def test_the_learners_own_seeds_stay_readable() -> None:
    error = new_output("error", ename="Wrong", evalue="200 steps, seed=0", traceback=["seed=0 took 200 steps"])
    for source in ("train(seed=0)", "train(seed=0)\n" + HIDDEN.format(1234)):
        (kept,) = blotted(source, error)
        assert (kept.evalue, kept.traceback) == ("200 steps, seed=0", ["seed=0 took 200 steps"])


def test_prose_is_left_alone() -> None:
    cell = new_markdown_cell(HIDDEN.format(1234))
    assert HideSeeds().preprocess_cell(cell, {}, 0)[0].source == HIDDEN.format(1234)
