"""The page of the library's public functions says what the docstrings say, and leaves nothing public undocumented."""

import importlib

from lora_lab.course import api


def test_the_page_is_up_to_date():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run python -m lora_lab.course.api"


def test_everything_public_has_a_docstring():
    for names in api.CHAPTERS.values():
        for name in names:
            module = importlib.import_module(f"lora_lab.{name}")
            assert module.__doc__, name
            found = dict(api.public(module))
            assert found, f"{name} has nothing public"
            assert not [title for title, thing in found.items() if not (thing.__doc__ or "").strip()], name


def test_no_module_of_the_library_is_left_out():
    """A new file of the library belongs on the page, or on this list of what is not for its users."""
    folder = api.PAGE.parent
    inside = {
        "__init__",
        "background",
        "cli",
        "paths",
        "model_source",
        "adapter_format",
        "adapter_notes",
        "origin",
        "codebooks",
        "fused_products",
    }
    inside |= {"chebyshev", "krylov"}
    listed = {name for names in api.CHAPTERS.values() for name in names}
    assert {file.stem for file in folder.glob("*.py")} - inside <= listed
    assert {f"init.{file.stem}" for file in (folder / "init").glob("*.py")} - listed <= {
        "init.__init__",
        "init.check",
        "init.collect",
        "init.evidence",
        "init.layer_inputs",
    }
