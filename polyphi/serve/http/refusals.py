"""What this server doesn't do, and what to use instead: fields of requests and routes of other APIs.

>>> unserved("/v1/audio/speech")
'this model writes text only, so there is no speech synthesis'
"""

NO_TOOLS = "this server runs no tools itself; offer functions in tools"
NO_CODE = "no code is taken from a request"
NO_SPEAKERS = "speakers are not told apart"
NO_PENALTIES = "a transcript is decoded without penalties and truncation"
NO_TAGS = "use tools, or a grammar for text around JSON"
NO_BACKGROUND = "no response runs in the background; use stream"
CHAT_ONLY = "only chat completions and completions have it"

FIELDS: dict[str, str] = {
    "access_programs": NO_TOOLS,
    "allowed_token_ids": "restrict the answer by logit_bias or by a grammar",
    "audio": "this model writes text only",
    "background": NO_BACKGROUND,
    "background_options": NO_BACKGROUND,
    "bad_words": "give tokens that may not occur a logit_bias of -100",
    "best_of": "use n to get several answers",
    "cache_salt": "clients with different API keys share no cached prefixes",
    "chat_template": "no template is taken from a request",
    "container": NO_TOOLS,
    "context_management": "nothing is removed from a conversation",
    "conversation": "use previous_response_id",
    "custom_logit_processor": NO_CODE,
    "diarize": NO_SPEAKERS,
    "disable_additional_properties": "set additionalProperties in the schema",
    "disable_any_whitespace": "the space between JSON tokens can't be configured",
    "documents": "send their texts or files as parts of a message",
    "echo": "only /v1/completions returns the prompt",
    "file_id": "this server stores no files; send file_data in its place",
    "guided_whitespace_pattern": "the space between JSON tokens can't be configured",
    "hotwords": "the model has no list of words to prefer",
    "image": "use the detail of an image's part",
    "keywords": "the model has no list of words to prefer",
    "known_speaker_names": NO_SPEAKERS,
    "known_speaker_references": NO_SPEAKERS,
    "is_3d_lora_weight": "the model has no experts, so the weights of its adapters are matrices",
    "kv_transfer_params": "keys and values stay on this server",
    "language": "the model detects that of the recording; to_language is that of the translation",
    "languages": "the model detects the language; language names one",
    "length_penalty": "only beam search has it, and this server has none",
    "logits_processors": NO_CODE,
    "logprob_token_ids": "log-probabilities are those of the likeliest tokens, at most 20",
    "lora_path": "adapters are selected by model or adapter",
    "mm_processor_kwargs": "max_crops of an image's part limits its tokens",
    "messages": "embeddings are of texts; send them as input",
    "moderation": "this server moderates nothing; use a model for it",
    "partial": "use continue_final_message",
    "prefix": "use continue_final_message",
    "prompt": "prompts are not stored; send instructions and input",
    "prompt_embeds": "prompts are text, token ids and media",
    "return_hidden_states": "/v1/embeddings returns their mean",
    "session_params": "a conversation is sent whole, or continued by previous_response_id",
    "stop": "its name here is stop_sequences",
    "stream_options": "the last events of a stream always have the usage",
    **dict.fromkeys(("structural_tag", "structures", "triggers"), NO_TAGS),
    "suffix": "the model can't fill in the middle of a text",
    "thread": "conversations aren't stored; send all messages",
    "truncate_prompt_tokens": "nothing is removed from a prompt; shorten it",
    "truncation": "nothing is removed from a conversation; shorten it",
    "use_beam_search": "this server has no beam search; temperature 0 takes the likeliest tokens",
    "vllm_xargs": NO_CODE,
    "web_search_options": NO_TOOLS,
    "whitespace_pattern": "the space between JSON tokens can't be configured",
    **dict.fromkeys(
        ("prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids"), CHAT_ONLY
    ),
    "n": "a request has one answer; send several",
    "response_format": "its name here is text.format or output_config.format",
    "max_completion_tokens": "a transcript is as long as its recording",
    **dict.fromkeys(("min_p", "top_k", "top_p"), NO_PENALTIES),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "repetition_penalty"), NO_PENALTIES),
}
"""Field -> why it is refused, or what to use instead."""

NO_BATCHES = "there are no batches; send the requests at once, and they run together"
NO_STORE = "this server stores no {}; send them with each request"
NO_RANKING = "this model scores no pairs of texts"
ROUTES: dict[str, str] = {
    "/api": "this server has OpenAI's and Anthropic's APIs, not Ollama's; its base URL ends in /v1",
    "/classify": NO_RANKING,
    "/invocations": "use the route of the request, such as /v1/chat/completions",
    "/load": "/metrics has the requests that run and wait",
    "/pooling": "this server has /v1/embeddings",
    "/rerank": NO_RANKING,
    "/score": NO_RANKING,
    "/v1/assistants": "use /v1/responses with tools",
    "/v1/audio/speech": "this model writes text only, so there is no speech synthesis",
    "/v1/audio/voices": "this model writes text only, so there is no speech synthesis",
    "/v1/batches": NO_BATCHES,
    "/v1/chat/completions": "chat completions aren't stored; /v1/responses stores its responses",
    "/v1/chat/completions/batch": NO_BATCHES,
    "/v1/complete": "use /v1/messages",
    "/v1/containers": NO_TOOLS,
    "/v1/conversations": "use /v1/responses with previous_response_id",
    "/v1/embed": "use /v1/embeddings",
    "/v1/evals": "use polyphi eval",
    "/v1/files": NO_STORE.format("files"),
    "/v1/fine_tuning": "use polyphi finetune",
    "/v1/images": "this model writes text only, so it makes no images",
    "/v1/messages/batches": NO_BATCHES,
    "/v1/moderations": "this server moderates nothing",
    "/v1/realtime/client_secrets": "use an API key of this server",
    "/v1/realtime/sessions": "use an API key of this server",
    "/v1/rerank": NO_RANKING,
    "/v1/responses/compact": "nothing is removed from a conversation; send a shorter one",
    "/v1/score": NO_RANKING,
    "/v1/skills": NO_TOOLS,
    "/v1/threads": "use /v1/responses with previous_response_id",
    "/v1/uploads": NO_STORE.format("files"),
    "/v1/vector_stores": NO_STORE.format("documents"),
    "/v1/videos": "this model writes text only, so it makes no videos",
    "/v2/chat": "use /v1/chat/completions",
    "/v2/embed": "use /v1/embeddings",
    "/v2/rerank": NO_RANKING,
}
"""Start of the path of routes of other servers -> why they aren't here."""


def unserved(path: str) -> str | None:
    """Why there is no route at a path; None for one that no known API has."""
    parts = path.split("/")
    prefixes = ("/".join(parts[:end]) for end in range(len(parts), 1, -1))
    return next((ROUTES[prefix] for prefix in prefixes if prefix in ROUTES), None)


def other_base(path: str) -> str:
    """The path that a client with a wrong base URL may mean: it lacks the prefix /v1, or has two."""
    return path.removeprefix("/v1") if path.startswith("/v1/v1/") else f"/v1{path}"
