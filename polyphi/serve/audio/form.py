"""Multipart forms of the audio routes: the file within its size limits, and OpenAI's fields.

>>> fields, upload = await receive(request, max_bytes=25_000_000)
>>> TranscriptionForm.parse(fields).response_format
'json'
"""

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from polyphi.engine.sampling import MAX_TEMPERATURE
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.events import ClientGone
from polyphi.serve.http.fields import Fields, Refused, refuse, validation_error
from polyphi.serve.http.refusals import NO_SPEAKERS
from polyphi.transcription import longform
from polyphi.types import transcript as transcripts
from polyphi.types.sampling import SamplingParams

MAX_FIELDS, MAX_FIELD = 32, 16 << 10
"""Maximum number of fields in addition to the file, and maximum bytes of each."""
AROUND = 1 << 20
"""Maximum bytes of a form in addition to its file."""
MAX_TEMPERATURES = 8
"""Maximum number of temperatures of one form: the first one and those of retries."""
MAX_SEED = 2**63 - 1
ZERO, ONE = ("0", "0.0"), ("1", "1.0")
REFUSED: Refused = {
    "diarize": ("false",),
    "frequency_penalty": ZERO,
    "hotwords": (),
    "keywords": (),
    "known_speaker_names": (),
    "known_speaker_references": (),
    "languages": (),
    "max_completion_tokens": (),
    "min_p": ZERO,
    "n": ("1",),
    "presence_penalty": ZERO,
    "repetition_penalty": ONE,
    "top_k": ("0", "-1"),
    "top_p": ONE,
    "use_beam_search": ("false",),
}
"""Fields of OpenAI's and other servers that this server doesn't have, with the values that don't use them; to ignore
others would give a wrong transcript."""
FILE = {
    "type": "string",
    "format": "binary",
    "description": "WAV, FLAC, OGG or MP3; usually also M4A, MP4, WebM, AAC and AMR.",
}


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0"):
        raise PydanticCustomError("flag", "expected true or false")
    return value.lower() in ("true", "1")


def _seed(value: str) -> int:
    try:
        number = int(value[:40])
    except ValueError:
        number = MAX_SEED + 1
    if abs(number) > MAX_SEED:
        limits = {"highest": MAX_SEED}
        raise PydanticCustomError("seed", "expected a whole number up to {highest}", limits)
    return number


def _temperature(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MAX_TEMPERATURE:
        limits = {"highest": f"{MAX_TEMPERATURE:g}"}
        raise PydanticCustomError("temperature", "expected a number from 0 to {highest}", limits)
    return number


Flag = Annotated[bool, BeforeValidator(_flag)]
Omitted = SkipJsonSchema[None]
"""The type of a field that isn't in the form; a form has no null."""


def _misplaced(field: str, message: str) -> PydanticCustomError:
    """The error for a field that the other fields don't allow."""
    return PydanticCustomError("misplaced_field", "{message}", {"field": field, "message": message})


class AudioForm(Fields):
    """The fields of both routes. An empty field counts as absent."""

    model: str | Omitted = Field(None, description="The model, or one of its adapters.")
    adapter: str = "auto"
    response_format: Annotated[
        Literal["json", "text", "srt", "verbose_json", "vtt"],
        refuse("diarized_json", NO_SPEAKERS),
    ] = "json"
    temperature: list[Annotated[float, BeforeValidator(_temperature), Field(ge=0)]] = Field(
        [0.0],
        max_length=MAX_TEMPERATURES,
        description="Several: those of the first try and of each retry.",
    )
    seed: Annotated[int, BeforeValidator(_seed)] | Omitted = None
    prompt: str = Field(
        "", description="A hint that is ignored, with a warning: the model has its own prompts."
    )
    stream: Flag = False
    chunking_strategy: Literal["auto"] | Omitted = Field(None, description="Pieces of up to 30 s.")

    ignored = frozenset({"stream_continuous_usage_stats", "stream_include_usage", "user"})
    refused: ClassVar[Refused] = REFUSED
    lists: ClassVar[Sequence[str]] = ("temperature",)
    """Fields that may come more than once."""

    @model_validator(mode="after")
    def _check_shared(self) -> Self:
        if self.stream and self.response_format not in ("json", "text"):
            raise _misplaced(
                "response_format",
                f"a stream is json or text, found {self.response_format!r}; times are only available at the end",
            )
        return self

    @property
    def segments(self) -> bool:
        """Whether verbose JSON has segments."""
        return True

    @property
    def words(self) -> bool:
        """Whether verbose JSON has words with their times."""
        return False

    @property
    def logprobs(self) -> bool:
        """Whether JSON has the tokens' log-probabilities."""
        return False

    @classmethod
    def parse(cls, fields: Mapping[str, Sequence[str]]) -> Self:
        """The form with these fields. Raises ApiError for an unknown field, a repeated field and a wrong value."""
        values: dict[str, str | list[str]] = {}
        for name, texts in fields.items():
            if name.startswith("chunking_strategy["):
                message = "expected 'auto'; the segmentation of a recording can't be configured"
                raise ApiError(400, f"chunking_strategy: {message}", param="chunking_strategy")
            if name in cls.lists:
                if several := [text for text in map(str.strip, texts) if text]:
                    values[name] = several
            elif len(texts) > 1 and name in cls.model_fields:
                raise ApiError(400, f"{name}: expected once, found {len(texts)} times", param=name)
            elif texts[0].strip() or name not in cls.model_fields:
                values[name] = texts[0].strip()
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            errors = [{**e, "loc": ("body", *e["loc"][:1])} for e in error.errors()]
            raise validation_error(RequestValidationError(errors)) from None

    @classmethod
    def openapi(cls) -> dict[str, Any]:
        """The form as the request body of an OpenAPI description."""
        properties: dict[str, Any] = {"file": FILE}
        for name, field in cls.model_json_schema()["properties"].items():
            properties[name] = {k: v for k, v in field.items() if (k, v) != ("default", None)}
            del properties[name]["title"]
        form = {"type": "object", "required": ["file"], "properties": properties}
        content = {"multipart/form-data": {"schema": form}}
        return {"requestBody": {"required": True, "content": content}}

    def sampling(self, max_tokens: int) -> SamplingParams | None:
        """Sampling parameters; None for temperature 0, greedy decoding with a higher temperature where an answer loops
        (longform.py), and for several temperatures."""
        if self.temperature == [0] or len(self.temperature) > 1:
            return None
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return SamplingParams(max_tokens, self.temperature[0], seed=seed, logprobs=0)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """The temperatures of the first try and of each retry."""
        return tuple(self.temperature) if len(self.temperature) > 1 else longform.TEMPERATURES


class TranscriptionForm(AudioForm):
    """The form of a transcription request."""

    language: str | Omitted = Field(
        None, description="Returned by name; the model detects the language itself, as with auto."
    )
    timestamp_granularities: list[Literal["word", "segment"]] = Field(["segment"])
    include: list[Literal["logprobs"]] = Field([])

    lists = (*AudioForm.lists, "timestamp_granularities", "include")

    @model_validator(mode="after")
    def _check_formats(self) -> Self:
        granularities = "timestamp_granularities" in self.model_fields_set
        if granularities and self.response_format != "verbose_json":
            message = "timestamp_granularities require response_format verbose_json"
            raise _misplaced("timestamp_granularities", message)
        if self.include and self.response_format != "json":
            raise _misplaced("include", "logprobs require response_format json")
        return self

    @property
    def segments(self) -> bool:
        return "segment" in self.timestamp_granularities

    @property
    def words(self) -> bool:
        return "word" in self.timestamp_granularities

    @property
    def logprobs(self) -> bool:
        return "logprobs" in self.include

    def task(self) -> tuple[longform.Task, str | None]:
        """The task of each piece, and the language of the answer if the form names it. Raises ApiError for a language
        that the model wasn't trained for."""
        if self.language is None or self.language.lower() == "auto":
            return longform.transcription(), None
        return longform.transcription(), _language("language", self.language)


class TranslationForm(AudioForm):
    """The form of a translation request."""

    refused: ClassVar[Refused] = {**REFUSED, "language": ()}

    to_language: str = Field("en", description="The code or name of a language.")
    cot: Flag = Field(False, description="Write the transcript first, then translate it.")

    def task(self) -> tuple[longform.Task, str | None]:
        """The task of each piece and the language of the answer. Raises ApiError as `TranscriptionForm.task` does."""
        language = _language("to_language", self.to_language)
        return longform.transcription(language, self.cot), language


def _language(field: str, name: str) -> str:
    try:
        return transcripts.language(name)
    except ValueError as error:
        raise ApiError(400, f"{field}: {error}", param=field) from None


async def receive(request: HttpRequest, max_bytes: int) -> tuple[dict[str, list[str]], UploadFile]:
    """The fields of a form and its file. Raises ApiError for a malformed form and above a size limit."""
    content_type, _ = parse_options_header(request.headers.get("content-type"))
    if content_type != b"multipart/form-data":
        raise ApiError(415, "expected a form (multipart/form-data) with a file")
    too_large = ApiError(
        413, f"file: expected at most {max_bytes:,} bytes, found more", param="file"
    )

    async def chunks() -> AsyncIterator[bytes]:
        remaining = max_bytes + AROUND
        async with aclosing(request.stream()) as stream:
            async for chunk in stream:
                remaining -= len(chunk)
                if remaining < 0:
                    raise too_large
                yield chunk

    try:
        form = await MultiPartParser(
            request.headers,
            chunks(),  # type: ignore[arg-type]
            max_files=1,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD,
        ).parse()
    except MultiPartException:
        raise ApiError(
            400,
            f"the form can't be read; expected multipart/form-data with one file and at most {MAX_FIELDS} fields of "
            f"up to {MAX_FIELD:,} bytes",
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    fields: dict[str, list[str]] = {}
    upload: UploadFile | None = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            upload, field = value, name
        else:
            fields.setdefault(name.removesuffix("[]"), []).append(value)
    if upload is None:
        raise ApiError(400, "file: expected the recording as a file, found none", param="file")
    error: ApiError | None = None
    if field != "file":
        error = ApiError(400, f"the file's field is {field!r:.80}; expected 'file'", param="file")
    elif (upload.size or 0) > max_bytes:
        error = too_large
    elif not upload.size:
        error = ApiError(400, "file: expected a recording, found an empty file", param="file")
    if error is not None:
        upload.file.close()
        raise error
    return fields, upload
