"""The explorers of the lessons in a real JupyterLab: sliders answer, and go on answering while a model trains.

Prints the latency of a slider step for each explorer, from the key to the decoded picture on the page.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator

import browser
import pytest
from test_browser import LATENCY_LIMIT, WATCH

pytestmark = pytest.mark.browser

CELLS = {
    "budget": "from lora_lab.widgets import budget_explorer\nbudget_explorer()",
    "cost": "from lora_lab.widgets import cost_explorer\ncost_explorer()",
    "training": (
        "import torch\nfrom lora_lab.widgets import training_explorer\n"
        "torch.manual_seed(0)\nexplorer = training_explorer(torch.randn(64, 48))\nexplorer"
    ),
    "merge": """
import json, torch
from lora_lab import inject
from lora_lab.experiments import merging
from lora_lab.models import load_base
from lora_lab.paths import MEASUREMENTS
from lora_lab.widgets import merge_explorer
model = inject(load_base()[0], "all-linear", 8, 16, init="random")
merge_explorer(model, merging.table(json.loads((MEASUREMENTS / "merging.json").read_text())))
""",
    "init": (
        "from lora_lab.models import load_base\nfrom lora_lab.widgets import init_explorer\n"
        "init_explorer(load_base()[0])"
    ),
}
ONCE = f"img => {{ window.steps = []; if (!img.watched) ({WATCH})(img); img.watched = true; }}"
STEPS = 12


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A page with JupyterLab in which every explorer stands."""
    chromium = browser.require_chromium()
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("notebooks")
    browser.write_notebook(folder / "explore.ipynb", *CELLS.values())
    with browser.jupyterlab(folder) as lab, sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=browser.ARGUMENTS)
        opened = running.new_page(viewport={"width": 1280, "height": 1400})
        opened.goto(lab.address("explore.ipynb"))
        opened.locator(".jp-CodeCell .cm-content").first.click()
        lab.wait_until_idle("explore.ipynb")
        for name in CELLS:
            opened.keyboard.press("Shift+Enter")
            cell(opened, name).locator("img.widget-image").first.wait_for(timeout=60_000)
        yield opened
        running.close()


def cell(page, name: str):
    return page.locator(".jp-CodeCell").nth(list(CELLS).index(name))


def slider_steps(page, name: str) -> list[float]:
    """Move the first slider of an explorer to and fro, each time until its picture has changed. Milliseconds."""
    picture, handle = (cell(page, name).locator(what).first for what in ("img.widget-image", ".noUi-handle"))
    picture.scroll_into_view_if_needed()
    picture.evaluate(ONCE)
    handle.focus()
    page.keyboard.press("Home")  # to its lowest value: then there is a step to the right
    page.wait_for_timeout(1_000)
    page.evaluate("window.steps = []")
    for step in range(STEPS):
        before = page.evaluate("window.steps.length")
        page.keyboard.press("ArrowRight" if step % 2 == 0 else "ArrowLeft")
        page.wait_for_function("before => window.steps.length > before", arg=before, timeout=10_000)
    return [time for time in page.evaluate("window.steps") if time is not None]


def report(capsys, name: str, times: list[float]) -> None:
    median = statistics.median(times)
    with capsys.disabled():
        print(f"\n{name}: slider step median {median:.0f} ms, slowest {max(times):.0f} ms of {len(times)}")
    assert median < LATENCY_LIMIT


@pytest.mark.parametrize("name", CELLS)
def test_a_slider_changes_the_picture(page, capsys, name):
    report(capsys, f"{name} explorer", slider_steps(page, name))


def test_the_sliders_answer_while_a_model_trains(page, capsys):
    ours = cell(page, "training")
    ours.get_by_role("button", name="Train").click()
    ours.get_by_text(re.compile(r"step \d+ of 40")).wait_for(timeout=90_000)
    report(capsys, "training explorer, in a run", slider_steps(page, "training"))
    ours.get_by_role("button", name="Cancel").click()
    ours.get_by_text("Cancelled after").wait_for(timeout=10_000)
    ours.locator("button:enabled", has_text="Train").wait_for(timeout=5_000)
