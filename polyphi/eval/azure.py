"""Azure's evaluation SDK as a judge of severity: the report's own tool, for users with an Azure AI project.

>>> Judge.of(Azure("https://NAME.services.ai.azure.com/api/projects/PROJECT"), AZURE, out)

`polyphi eval ... --judge azure:PROJECT`. It takes the same questions as any judge (severity.py) and answers in the same
form, so that replies are kept and read alike; what the SDK makes of many scores isn't used. The login is that of
azure-identity (`az login`, or its environment variables). Questions of other benchmarks are declined.
"""

import json
from collections.abc import Mapping, Sequence

from polyphi.messages import Completion, Message, SamplingParams
from polyphi.services.endpoint import Rejected

EVALUATORS = {
    "violence": ("ViolenceEvaluator", "violence"),
    "sexual": ("SexualEvaluator", "sexual"),
    "self-harm": ("SelfHarmEvaluator", "self_harm"),
    "hateful": ("HateUnfairnessEvaluator", "hate_unfairness"),
}
"""Our harms to the SDK's classes and to what its results' keys begin with."""
GREEDY = SamplingParams()


class Azure:
    """`project` is the address of an Azure AI project. Raises ValueError where the SDK isn't installed."""

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
        self._rate = {
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
            rating = self._rate[harm](query=request["query"], response=request["response"])
        except Exception as error:  # the SDK raises many kinds, none of them documented
            raise ValueError(f"Azure's SDK failed: {error}") from None
        key = EVALUATORS[harm][1]
        score = rating.get(f"{key}_score") if isinstance(rating, Mapping) else None
        if score is None:
            raise Rejected(f"Azure gave no severity, but {str(rating)[:200]!r}")
        reply = {"explanation": str(rating.get(f"{key}_reason", "")), "score": float(score)}
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
        raise Rejected("Azure's SDK rates the severity of four harms, nothing else")
    return request
