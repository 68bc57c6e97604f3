"""Where a base comes from: what is refused, and a Hub that is out of reach, silent, or made here."""

import functools
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lab import model_source, models, paths

transformers = pytest.importorskip("transformers")
from tiny_models import edit_json, save_folder  # noqa: E402

load = functools.partial(models.load_base, device="cpu")  # also where there is a GPU


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Llama folder that a test may damage."""
    return save_folder("llama", tmp_path)


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, lost):
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=rf"missing: .*{lost}"):
        load(folder)


def test_a_pickle_is_named_and_never_opened(folder):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(folder / "the bomb went off"),)

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)
    assert not (folder / "the bomb went off").exists()


@pytest.mark.parametrize("kind", ["llama", "my_own_kind"])
def test_code_that_comes_with_a_model_is_never_run(folder, kind, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked the user"))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder / 'ran')!r})\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_json(folder / "config.json", model_type=kind, auto_map=auto_map)
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Slow", "evil.Fast"]})
    if kind == "llama":  # transformers has a class of its own for it
        assert type(load(folder)[0]) is transformers.LlamaForCausalLM
    else:
        with pytest.raises(ValueError, match=r"my_own_kind.*auto_map"):
            load(folder)
    assert not (folder / "ran").exists()


def test_what_is_no_causal_language_model_is_refused(folder):
    edit_json(folder / "config.json", model_type="vit")
    with pytest.raises(ValueError, match="no causal language model of type 'vit'"):
        load(folder)
    (folder / "config.json").write_text("{ not json")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        load(folder)


def test_an_adapter_folder_is_not_a_base(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter"):
        load(folder)


def test_weights_that_are_cut_short_or_incomplete_are_refused(folder):
    file = folder / "model.safetensors"
    whole = load_file(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load(folder)
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({name: value for name, value in whole.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=lost):
        load(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder):
    _, tokenizer = load(folder)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=f"{len(tokenizer)} tokens, the model's table only {len(tokenizer) - 1} rows"):
        load(folder)


def test_paths_that_lead_nowhere(folder, monkeypatch):
    for source in (folder / "nothing", "./no/such/folder", str(folder / "config.json")):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load(source)
    monkeypatch.delenv("LORA_LAB_BASE", raising=False)
    monkeypatch.setattr(paths, "BASE", folder / "gone")
    with pytest.raises(FileNotFoundError, match="course's own base model is missing"):
        load()


def test_without_network_a_hub_id_fails_within_seconds_and_says_what_to_do(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    code = (
        "import time, torch, lora_lab.models as m; start = time.monotonic()\n"
        "try: m.load_base('someone/some-model')\n"
        "except ConnectionError as error: print(time.monotonic() - start, error)"
    )
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if "OFFLINE" not in name}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    seconds, _, message = run.stdout.partition(" ")
    assert float(seconds) < 15, run.stderr  # 0.1 s, and the import, on a machine that is not busy
    assert message.count("\n") == 1
    for advice in ("someone/some-model", "connect to the network", "set LORA_LAB_BASE", "unset LORA_LAB_BASE"):
        assert advice in message
    assert run.stderr == ""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Points the Hub's library at an address of ours, and its cache at an empty folder."""
    from huggingface_hub import constants

    def use(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return use


def test_a_hub_that_accepts_and_stays_silent_is_given_up(hub, monkeypatch):
    monkeypatch.setattr(model_source, "HUB_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(ConnectionError, match="set LORA_LAB_BASE"):
            load("someone/some-model")
    assert time.monotonic() - start < 20


def test_a_name_server_that_does_not_answer_is_given_up(hub, monkeypatch):
    monkeypatch.setattr(model_source, "HUB_TIMEOUT", 0.3)
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asleep.wait(60) and [])
    hub("http://the-hub.invalid")
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"no answer within 1\.3 s"):
        load("someone/some-model")
    assert time.monotonic() - start < 20
    asleep.set()


def test_offline_mode_never_asks(hub, monkeypatch):
    from huggingface_hub import constants

    hub("http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("used the network"))
    with pytest.raises(ConnectionError, match=r"offline mode.*set LORA_LAB_BASE"):
        load("someone/some-model")


class OurHub(http.server.BaseHTTPRequestHandler):
    """Just enough of the Hub: the list of a model's files, and the files."""

    folder: Path
    fetched: list[str]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        files = sorted(file for file in self.folder.rglob("*") if file.is_file())
        if "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            file = self.folder / name
            self.fetched.append(name)
            return self.reply(file.read_bytes() if file.is_file() else None)
        if "/tree/" in path:
            entries = [
                {"type": "file", "path": self.name(f), "size": f.stat().st_size, "oid": self.etag(f)} for f in files
            ]
            return self.reply(json.dumps(entries).encode())
        listing = {
            "id": "someone/some-model",
            "sha": self.commit,
            "siblings": [{"rfilename": self.name(f)} for f in files],
        }
        return self.reply(json.dumps(listing).encode() if "some-model" in path else None)

    def name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def etag(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def reply(self, body: bytes | None) -> None:
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Repo-Commit", self.commit)
        self.send_header("ETag", f'"{hashlib.sha1(body or b"").hexdigest()}"')
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_hub_model_is_downloaded_once_without_pickles_and_then_works_offline(hub, folder):
    (folder / "pytorch_model.bin").write_bytes(b"not for us")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights in another form")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    handler = type("Handler", (OurHub,), {"folder": folder, "fetched": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        model, _ = load("someone/some-model")
        with pytest.raises(FileNotFoundError, match="nobody/nothing is no folder here and no public model"):
            load("nobody/nothing")
        server.shutdown()
    needed = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(handler.fetched) - {"chat_template.jinja"} == needed
    again, _ = load("someone/some-model")  # the server is gone
    torch.testing.assert_close(again.state_dict(), model.state_dict())


def test_a_hub_model_with_pickles_only_is_refused_before_the_download(hub, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    handler = type("Handler", (OurHub,), {"folder": folder, "fetched": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub(f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(FileNotFoundError, match=r"no safetensors weights \(pytorch_model\.bin is a pickle"):
            load("someone/some-model")
        server.shutdown()
    assert handler.fetched == []
