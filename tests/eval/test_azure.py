"""Azure's SDK as a judge: its scores are parsed like other judges' replies, and other requests are rejected."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polyphi.types.messages import Message
from polyphi_eval import evaluation
from polyphi_eval.azure import EVALUATORS, Azure
from polyphi_eval.cache import CachedRequest
from polyphi_eval.judge import points
from polyphi_eval.services.endpoint import RequestRejected
from polyphi_eval.severity import AZURE, HARMS, JUDGING

PROJECT = "https://name.services.ai.azure.com/api/projects/p"


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A fake SDK whose results have the keys of azure-ai-evaluation 1.18.10."""
    evaluation, identity = ModuleType("azure.ai.evaluation"), ModuleType("azure.identity")
    identity.DefaultAzureCredential = lambda: "a credential"  # type: ignore[attr-defined]
    evaluation.result = {"score": 5}  # type: ignore[attr-defined]

    def evaluator_of(key: str) -> Any:
        def evaluator(*, credential: str, azure_ai_project: str) -> Any:
            assert (credential, azure_ai_project) == ("a credential", PROJECT)

            def rate(*, query: str, response: str) -> dict[str, Any]:
                evaluation.request = (key, query, response)  # type: ignore[attr-defined]
                score = evaluation.result["score"]
                if score is None:
                    return {}
                return {
                    key: "Medium",
                    f"{key}_score": score,
                    f"{key}_reason": 'said "so"',
                    f"{key}_result": "fail",
                }

            return rate

        return evaluator

    for name, key in EVALUATORS.values():
        setattr(evaluation, name, evaluator_of(key))
    for name, module in {
        "azure": ModuleType("azure"),
        "azure.ai": ModuleType("azure.ai"),
        "azure.ai.evaluation": evaluation,
        "azure.identity": identity,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["azure.ai"].evaluation = evaluation  # type: ignore[attr-defined]
    yield evaluation


def request(**fields: str) -> list[Message]:
    return [Message.system("rate"), Message.user(json.dumps({"earlier": [], **fields}))]


@pytest.mark.parametrize("harm", HARMS)
def test_each_harm_is_rated_by_its_own_evaluator(sdk: Any, harm: str) -> None:
    reply = Azure(PROJECT).generate(request(harm=harm, query="q", response="r")).text
    assert points(reply, 0, 7) == 5
    assert sdk.request == (EVALUATORS[harm][1], "q", "r")


def test_other_requests_are_rejected(sdk: Any) -> None:
    for messages in (request(request="q", response="r"), [Message.user("Which is better?")]):
        with pytest.raises(RequestRejected, match="four harms"):
            Azure(PROJECT).generate(messages)
    sdk.result["score"] = None
    with pytest.raises(RequestRejected, match="expected a severity"):
        Azure(PROJECT).generate(request(harm="sexual", query="q", response="r"))


def test_without_the_sdk_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.ai.evaluation", None)
    monkeypatch.setitem(sys.modules, "azure.ai", None)
    with pytest.raises(ValueError, match="pip install azure-ai-evaluation"):
        Azure(PROJECT)


def test_a_project_is_an_address(sdk: Any) -> None:
    with pytest.raises(ValueError, match="https:// address, found 'my-project'"):
        Azure("my-project")


def test_the_command_line_names_it_by_its_project(sdk: Any, tmp_path: Path) -> None:
    own = evaluation.EvaluatedModel(None, "m", "m")  # type: ignore[arg-type]
    judge = evaluation.judge(f"azure:{PROJECT}", own, tmp_path, None)
    assert judge.name == AZURE == JUDGING.standard
    (answer,) = judge.cache.answers(
        [CachedRequest(request(harm="hateful", query="q", response="r"))]
    )
    assert points(answer.text, 0, 7) == 5
    (other,) = judge.cache.answers([CachedRequest([Message.user("Which is better?")])])
    assert other.text == "" and "four harms" in str(other.error)
