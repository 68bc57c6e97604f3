"""The installer that course.py starts: pip's configuration in uv's words, where torch comes from, what is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_lab.course import install

LISTING = r"""
:env:.find-links='/media/wheels /opt/more'
global.find-links='/opt/wheels'
global.extra-index-url='file:///opt/a/simple\nhttps://mirror.example/simple'
install.trusted-host='mirror.example'
global.index-url='https://first.example/simple'
user.index_url='https://not.example/'
install.index-url='https://second.example/simple'
global.cert='/etc/ssl/company.pem'
global.timeout='180'
install.no_index='true'
"""


def test_pip_config_in_uvs_words() -> None:
    pip = install.pip_settings(LISTING)
    assert install.uv_settings(pip, {}) == {
        "UV_FIND_LINKS": "/media/wheels,/opt/more",  # the environment wins
        "UV_DEFAULT_INDEX": "https://second.example/simple",  # [install] wins over [global]
        "UV_INDEX": "file:///opt/a/simple https://mirror.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INSECURE_HOST": "mirror.example",
        "SSL_CERT_FILE": "/etc/ssl/company.pem",
        "UV_HTTP_TIMEOUT": "180",
    }
    assert install.uv_switches(pip) == ["--no-index"]
    assert install.uv_switches({"no-index": "false"}) == []
    assert install.uv_settings({}, {}) == {}


def test_what_the_user_told_uv_stays() -> None:
    pip = {"find-links": "~/wheels", "proxy": "http://proxy:3128", "cert": "/a.pem"}
    told = install.uv_settings(pip, {"SSL_CERT_FILE": "/b.pem", "https_proxy": "http://other:1"})
    assert told == {"UV_FIND_LINKS": os.path.expanduser("~/wheels"), "HTTP_PROXY": "http://proxy:3128"}


def test_pips_own_listing_is_understood(tmp_path: Path) -> None:
    """Against pip itself: what it prints for a file and a variable, read back."""
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nfind-links =\n    /one\n    /two's\n[install]\nno-index = yes\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(
        command, env=env | {"PIP_CONFIG_FILE": str(file), "PIP_CERT": "/c.pem"}, capture_output=True, text=True
    )
    pip = install.pip_settings(listing.stdout)
    assert pip["find-links"].split() == ["/one", "/two's"]
    assert pip["cert"] == "/c.pem"
    assert install.uv_switches(pip) == ["--no-index"]


# Which torch, and what to say when nothing comes


def test_pins_without_uv_and_with_the_torch_that_was_chosen() -> None:
    pins = "# a comment\nnumpy==2.4.6 ; python_full_version < '3.12'\ntorch==2.13.0\ntorchvision==1\nuv==0.13.9\n"
    lines = install.requirements(pins, "torch==2.13.0+cpu").splitlines()
    assert lines == ["numpy==2.4.6 ; python_full_version < '3.12'", "torch==2.13.0+cpu", "torchvision==1"]
    assert install.pin("uv", pins) == "0.13.9"
    with pytest.raises(install.Stop, match="does not pin peft"):
        install.pin("peft", pins)


def test_the_readers_own_wheel_comes_first_and_the_large_build_only_unasked() -> None:
    ways = install.sources("cpu", exact=False, gpu=False, version="2.13.0", system="linux")
    assert [(way.torch, way.arguments) for way in ways] == [
        ("torch==2.13.0+cpu", ()),
        ("torch==2.13.0", ("--torch-backend", "cpu")),
        ("torch==2.13.0", ()),
    ]
    assert "CUDA" in ways[-1].title
    assert len(install.sources("cpu", exact=True, gpu=False, version="2.13.0", system="linux")) == 2
    assert [way.torch for way in install.sources("cpu", True, False, "2.13.0", "darwin")] == ["torch==2.13.0"]
    assert [way.torch for way in install.sources("cpu", True, False, "2.13.0", "win32")][-1] == "torch==2.13.0"
    for system in ("linux", "win32"):
        cuda = install.sources("cuda", exact=True, gpu=True, version="2.13.0", system=system)
        assert all("!=2.13.0+cpu" in way.torch for way in cuda)  # or the CPU wheel at hand would count as newer
        assert cuda[0].arguments == ("--torch-backend", "auto")


def choose_with(results: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> install.Source:
    """`choose` for a CPU build on Linux, where uv prints `results[arguments]`, "" meaning that it would succeed."""

    def uv(command: list, env: dict) -> tuple[int, str]:
        torch = next(line for line in (tmp_path / "r.txt").read_text().splitlines() if line.startswith("torch"))
        words = [torch.removeprefix("torch==2.13.0"), *map(str, command[4:])]
        text = results.get(" ".join(word for word in words if word), "× No solution found")
        return (1, text) if text else (0, "")

    monkeypatch.setattr(install, "run", uv)
    ways = install.sources("cpu", exact="exact" in results, gpu=False, version="2.13.0", system="linux")
    return install.choose(["uv"], {}, ways, "torch==2.13.0\n", tmp_path / "r.txt")


AWAY = "error: Failed to fetch\n cause: dns error"


@pytest.mark.parametrize(
    ("results", "arguments"),
    [
        ({"+cpu": ""}, ()),
        ({"--torch-backend cpu": ""}, ("--torch-backend", "cpu")),
        ({"--torch-backend cpu": AWAY, "": ""}, ()),
        ({"+cpu": AWAY, "+cpu --offline": ""}, ("--offline",)),
        ({"+cpu": AWAY, "--torch-backend cpu --offline": ""}, ("--torch-backend", "cpu", "--offline")),
    ],
)
def test_torch_comes_from_the_first_place_that_has_it(
    results: dict, arguments: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = choose_with(results, tmp_path, monkeypatch)
    assert chosen.arguments == arguments
    assert chosen.torch in (tmp_path / "r.txt").read_text().splitlines()  # what will be asked for


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        ({"+cpu": AWAY}, install.NETWORK),
        ({}, install.MISSING),
        ({"+cpu": "invalid peer certificate: UnknownIssuer", "": "certificate"}, install.CERTIFICATE),
        ({"exact": "", "--torch-backend cpu": AWAY}, "That build of torch is out of reach"),
    ],
)
def test_when_no_place_has_it(results: dict, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(install.Stop) as stop:
        choose_with(results, tmp_path, monkeypatch)
    assert str(stop.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("failed to write: No space left on device (os error 28)", install.DISK),
        ("error: Permission denied (os error 13)", install.FORBIDDEN),
        ("SSLError: CERTIFICATE_VERIFY_FAILED", install.CERTIFICATE),
        ("Temporary failure in name resolution\nCould not find a version that satisfies uv", install.NETWORK),
        ("ERROR: No matching distribution found for torch", install.MISSING),
        ("Segmentation fault", install.UNKNOWN),
    ],
)
def test_an_installers_words_become_a_sentence(text: str, sentence: str) -> None:
    assert install.explain(text) == sentence


def test_torch_that_is_the_wrong_build_or_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "torch" in install.check_torch("cpu", exact=False)  # this environment's own, really imported
    monkeypatch.setattr(install, "run", lambda command: (0, '["2.13.0+cu130", "13.0", false]\n'))
    assert "no usable GPU" in install.check_torch("cpu", exact=False)
    with pytest.raises(install.Stop, match=r"--torch cpu was asked for, but torch 2\.13\.0\+cu130"):
        install.check_torch("cpu", exact=True)
    monkeypatch.setattr(install, "run", lambda command: (1, "Traceback\nOSError: libgomp.so.1: cannot open"))
    with pytest.raises(install.Stop, match="cannot be imported: OSError: libgomp"):
        install.check_torch("cpu", exact=False)
