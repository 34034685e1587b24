"""Fields beyond OpenAI's that clients of vLLM, SGLang and others send to all routes that generate text.

docs/fields.md says of each what it does here.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from polyphi.serve.http.fields import Fields, Refused, needs, refuse
from polyphi.serve.openai.formats import FormatFields

IGNORED = frozenset(
    [
        # OpenAI's
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "verbosity",
        "prediction",
        # of other servers
        "add_special_tokens",  # no special tokens are added to a prompt here
        "cache_control",
        "cache_prompt",
        "early_stopping",  # of beam search
        "guided_decoding_backend",
        "priority",
        "provider",
        "request_id",
        "rid",
        "spaces_between_special_tokens",  # of tokenizers without bytes
        "transforms",
    ]
)
REFUSED: Refused = {
    "allowed_token_ids": (),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": (),
    "custom_logit_processor": (),
    "documents": ([],),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "logprob_token_ids": (),
    "lora_path": (),
    "mm_processor_kwargs": ({},),
    "moderation": (),
    "prompt_embeds": (),
    "return_hidden_states": (False,),
    "session_params": (),
    "structural_tag": (),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "vllm_xargs": (),
}


REPETITION = {"repeat_penalty": "repetition_penalty"}
NOT_ALL = refuse(-1, "the log-probabilities of all tokens aren't returned, at most those of 20")
"""vLLM's value for the whole vocabulary."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class StreamOptions(Fields):
    ignored = frozenset({"include_obfuscation"})

    include_usage: bool = False
    continuous_usage_stats: bool = False


class ReasoningVariables(Fields):
    """The variables of reasoning models' chat templates that a request may set (`chat_template_kwargs`). Our template
    doesn't have them; they set the reasoning here too."""

    enable_thinking: bool | None = None
    thinking: bool | None = None
    thinking_budget: int | None = Field(default=None, ge=0)
    reasoning_effort: Effort | None = None

    @property
    def effort(self) -> Effort | None:
        """ "none" where the reasoning is switched off."""
        off = self.enable_thinking is False or self.thinking is False
        return "none" if off else self.reasoning_effort


class TemplateOptions(ReasoningVariables):
    """All variables that a request with turns may set, those of the prompt's end included."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


def reasoning_limits(
    variables: ReasoningVariables | None, effort: Effort | None, budget: int | None
) -> tuple[Effort | None, int | None]:
    """The effort and the budget of a request's reasoning: its own fields, else the template's variables."""
    if variables is None:
        return effort, budget
    return effort or variables.effort, variables.thinking_budget if budget is None else budget


class Extensions(FormatFields):
    """The fields of the two completion routes that OpenAI's API doesn't have; other routes have most of them too."""

    ignored = IGNORED
    refused: ClassVar[Refused] = REFUSED

    top_k: int | None = Field(default=None, description="0 and -1: no limit.")
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = Field(default=None, fail_fast=True)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20), NOT_ALL] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, value: Any) -> Any:
        """The name of llama.cpp and Ollama, which chat pages send."""
        if not isinstance(value, dict) or "repeat_penalty" not in value:
            return value
        return {REPETITION.get(name, name): inner for name, inner in value.items()}

    @model_validator(mode="after")
    def _check_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise needs("stream_options", "stream")
        if self.stream and self.prompt_logprobs is not None:
            raise PydanticCustomError(
                "misplaced_field",
                "prompt_logprobs aren't streamed; leave stream out",
                {"field": "prompt_logprobs"},
            )
        return self
