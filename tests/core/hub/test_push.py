"""`--push-to-hub` against a local Hub: what is pushed, what is not, and errors before a training begins."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

import polyphi
from polyphi import Message, SamplingParams, cli
from polyphi.hub import push
from polyphi.runtime.files import RECORD
from tests.fixtures import fake_hub, published
from tests.fixtures.fake_hub import Hub

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A local Hub, its address and a token in place of those of the environment."""
    with fake_hub.hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield server


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("secret-folder")
    published.write(source / "phi", "native")
    published.write_data(source / "data")
    return source


@pytest.fixture
def train(source: Path, tmp_path: Path) -> Callable[..., Path]:
    def train(*options: str) -> Path:
        out = tmp_path / "run"
        clips = str(source / "data" / "clips.jsonl")
        command = ["finetune", "speech", "--model"]
        command += [str(source / "phi"), "--data", clips, "--eval-data", clips, "--eval-every", "1"]
        cli.main([*command, "--out", str(out), "--steps", "2", "--batch-tokens", "200", *options])
        return out

    return train


def header(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return fields


def test_a_trained_model_is_pushed(
    server: Hub, train: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    out = train("--push-to-hub", "somebody/calls")
    repository = server.repositories["somebody/calls"]
    assert repository["private"]
    files = {
        str(path.relative_to(out / "model")): path.read_bytes()
        for path in (out / "model").rglob("*")
        if path.is_file() and path.name != RECORD
    }
    assert repository["files"] == files and "model.safetensors" in files
    assert len(server.storage) == 3, "the weights and two adapters"
    card = files["README.md"].decode()
    assert "secret-folder" not in card and str(tmp_path) not in card
    assert "# calls" in card and "in 2 steps" in card and "were trained on rows" in card
    assert "| speech | 5 | 10 | yes |" in card and "| vision | 4 | 8 | no |" in card
    evaluation = json.loads((out / "manifest.json").read_text())["evaluation"]
    assert f"{evaluation['best']['loss']:.3f}" in card
    assert "polyphi chat somebody/calls" in card and "peft" in header(card)["tags"]

    (tmp_path / "pulled").mkdir()
    for name, content in repository["files"].items():
        (tmp_path / "pulled" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pulled" / name).write_bytes(content)
    answers = [
        polyphi.load(folder).generate([Message.user("low")], sampling=SamplingParams(max_tokens=3))
        for folder in (out / "model", tmp_path / "pulled")
    ]
    assert answers[0].tokens == answers[1].tokens

    train("--push-to-hub", "somebody/again", "--public")  # finished: only pushed
    assert not server.repositories["somebody/again"]["private"]
    assert "somebody/again" in server.repositories["somebody/again"]["files"]["README.md"].decode()


def test_an_export_is_pushed(server: Hub, source: Path, tmp_path: Path) -> None:
    command = ["export", str(source / "phi"), "--out", str(tmp_path / "out"), "--quant", "int8"]
    cli.main([*command, "--push-to-hub", "somebody/phi-int8"])
    files = server.repositories["somebody/phi-int8"]["files"]
    assert {*files, RECORD} == {p.name for p in (tmp_path / "out").iterdir() if p.is_file()}
    assert "secret-folder" not in files["README.md"].decode()


@pytest.mark.parametrize(
    ("token", "stable"),
    [(None, "HF_TOKEN"), ("hf_unknown", "401"), (fake_hub.READS, "403")],
)
def test_a_token_is_checked_before_the_training(
    token: str | None,
    stable: str,
    server: Hub,
    train: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SystemExit) as stop:
        train("--push-to-hub", "somebody/calls")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and stable in error and len(error.splitlines()) == 1
    assert token is None or token not in error
    assert not (tmp_path / "run").exists() and not server.repositories


def test_a_public_repository_is_not_filled_by_accident(server: Hub) -> None:
    server.repositories["somebody/open"] = {"private": False, "files": {}}
    with pytest.raises(ValueError, match="--public"):
        push.prepare(push.HubTarget("somebody/open"))
    push.prepare(push.HubTarget("somebody/open", public=True))
    server.repositories["somebody/mine"] = {"private": True, "files": {}}
    push.prepare(push.HubTarget("somebody/mine"))


def test_a_hub_that_fails_leaves_a_complete_model(
    server: Hub, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_hub.Handler, "do_PUT", lambda self: self._answer({}, 403))
    target = push.HubTarget("somebody/phi")
    push.prepare(target)
    with pytest.raises(OSError, match=r"somebody/phi: .*403"):
        push.push(source / "phi", target)
    assert not server.repositories["somebody/phi"]["files"]


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("calls", "a/b/c", "/tmp/x", "a b/c"):
        with pytest.raises(ValueError, match="owner/name"):
            push.HubTarget(name)
    with pytest.raises(ValueError, match="--push-to-hub"):
        push.target(None, public=True)
    for option in (["--push-to-hub", "somebody/x"], ["--eval-data", "x.jsonl"]):
        with pytest.raises(SystemExit):
            cli.main(["train", "speech_2_post", *option])
        assert option[0] in capsys.readouterr().err
