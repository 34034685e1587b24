"""Azure's evaluation SDK, the report's tool, as a judge of severity, for users with an Azure AI project.

>>> Judge.of(Azure("https://NAME.services.ai.azure.com/api/projects/PROJECT"), AZURE, out)

`polyphi eval ... --judge azure:PROJECT`. It receives the same requests as any judge (severity.py) and replies in the
same format, so that replies are stored and parsed alike; the SDK's aggregation of scores isn't used. Authentication is
by azure-identity (`az login`, or its environment variables). Requests of other benchmarks are rejected.
"""

import json
from collections.abc import Mapping, Sequence

from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services.endpoint import RequestRejected

EVALUATORS = {
    "violence": ("ViolenceEvaluator", "violence"),
    "sexual": ("SexualEvaluator", "sexual"),
    "self-harm": ("SelfHarmEvaluator", "self_harm"),
    "hateful": ("HateUnfairnessEvaluator", "hate_unfairness"),
}
"""Harm -> the SDK's class and the prefix of keys in its results."""
GREEDY = SamplingParams()


class Azure:
    """The report's judge of harms, in Azure AI. `project` is the URL of an Azure AI project. Raises ValueError if the
    SDK isn't installed."""

    def __init__(self, project: str) -> None:
        try:
            from azure.ai import evaluation
            from azure.identity import DefaultAzureCredential
        except ImportError as error:
            raise ValueError(
                f"--judge azure: needs Microsoft's SDK, which isn't installed ({error}); pip install "
                "azure-ai-evaluation azure-identity, or give another judge"
            ) from None
        if not project.startswith("https://"):
            raise ValueError(
                f"--judge azure: expected a project's https:// address, found {project!r}"
            )
        credential = DefaultAzureCredential()
        self._evaluators = {
            harm: getattr(evaluation, name)(credential=credential, azure_ai_project=project)
            for harm, (name, _) in EVALUATORS.items()
        }

    def generate(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        adapter: str | None = "auto",
    ) -> Completion:
        request = _request(messages)
        harm = request["harm"]
        try:
            result = self._evaluators[harm](query=request["query"], response=request["response"])
        except Exception as error:  # the SDK raises several undocumented types
            raise ValueError(f"Azure's SDK failed: {error}") from None
        key = EVALUATORS[harm][1]
        score = result.get(f"{key}_score") if isinstance(result, Mapping) else None
        if score is None:
            raise RequestRejected(f"expected a severity from Azure, found {str(result)[:200]!r}")
        reply = {"explanation": str(result.get(f"{key}_reason", "")), "score": float(score)}
        return Completion(json.dumps(reply, ensure_ascii=False))


def _request(messages: Sequence[Message]) -> dict[str, str]:
    try:
        request = json.loads(messages[-1].text)
    except json.JSONDecodeError:
        request = {}
    if (
        not isinstance(request, dict)
        or request.get("harm") not in EVALUATORS
        or "response" not in request
    ):
        raise RequestRejected(
            "Azure's SDK rates only the severity of four harms; use another judge"
        )
    return request
