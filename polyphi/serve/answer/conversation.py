"""The turns of a request, in the form that all APIs translate to, and their conversion to `Message`s.

>>> turns = [InputTurn("user", (Text("What is this?"), MediaPart("image", "data:image/png;base64,...", path)), path)]
>>> messages = await conversation(server.media, turns, settings, "messages")
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from polyphi.serve.admission.settings import Settings
from polyphi.serve.answer.fetch import Media
from polyphi.serve.http.errors import ApiError
from polyphi.serve.openai.schema import (
    AudioPart,
    AudioUrlPart,
    FilePart,
    ImagePart,
    ItemPart,
    RefusalPart,
    RequestPart,
    Turn,
    VideoPart,
)
from polyphi.types.media_sources import declared_type
from polyphi.types.messages import Message, with_calls
from polyphi.types.parts import Audio, Detail, Document, Image, Item, Part, Text, Video

ROLES = {"developer": "system", "tool": "tool_response", "function": "tool_response"}


@dataclass(frozen=True)
class MediaPart:
    """An image, audio clip, video, document or item of a further modality that isn't loaded yet: a URL, or with
    `encoded` base64. `path`: the part's path in the request, for errors. `frames`: of a video. `name` and `media_type`:
    of a document."""

    modality: str
    url: str
    path: str
    encoded: bool = False
    detail: Detail = "auto"
    max_crops: int | None = None
    frames: int = 0
    name: str = ""
    media_type: str = ""


@dataclass(frozen=True)
class InputTurn:
    """A turn with the model's role; an assistant's calls are its last part (messages.py)."""

    role: str
    parts: tuple[Text | MediaPart, ...]


def with_call_parts(
    parts: Iterable[Text | MediaPart], calls: Sequence[Any], path: str
) -> tuple[Text | MediaPart, ...]:
    """An assistant's parts with its calls appended. Raises ApiError for calls without a name or with arguments that are
    no JSON object, or nested too deeply."""
    try:
        (call_part,) = with_calls((), calls)
    except RecursionError:
        message = (
            f"{path}: expected arguments of less depth, found too many brackets within each other"
        )
        raise ApiError(400, message, param=path) from None
    except ValueError as error:
        raise ApiError(400, f"{path}: {error}", param=path) from None
    assert isinstance(call_part, Text)
    return (*(part for part in parts if part != Text("")), call_part)


def media_paths(turns: Sequence[InputTurn], modality: str) -> list[str]:
    """The paths of a conversation's images ("image"), audio ("audio"), videos ("video") or documents
    ("document"), in their order."""
    return [part.path for part in media_parts(turns) if part.modality == modality]


def media_parts(turns: Sequence[InputTurn]) -> list[MediaPart]:
    return [part for turn in turns for part in turn.parts if isinstance(part, MediaPart)]


async def conversation(
    media: Media, turns: Sequence[InputTurn], settings: Settings, param: str
) -> tuple[Message, ...]:
    """The turns as `Message`s, with the bytes of all media loaded. Raises ApiError above the limits of a request, whose
    field with the turns is `param`."""
    if len(turns) > settings.max_messages:
        raise ApiError(
            400,
            f"expected at most {settings.max_messages} messages in a conversation, found {len(turns)}",
            param=param,
        )
    parts = media_parts(turns)
    frames = sum(part.frames for part in parts)
    clips = sum(part.modality != "video" for part in parts)
    for count, limit, name in (
        (frames, settings.max_video_frames, "frames of videos"),
        (frames + clips, settings.max_parts, "images, audio clips, frames of videos and documents"),
    ):
        if count > limit:
            raise ApiError(
                400, f"expected at most {limit} {name} in a request, found {count}", param=param
            )
    return tuple([Message(turn.role, await _load(media, turn.parts)) for turn in turns])


async def _load(media: Media, parts: Sequence[Text | MediaPart]) -> tuple[Part, ...]:
    loaded: list[Part] = []
    for part in parts:
        if isinstance(part, Text):
            loaded.append(part)
        elif part.modality == "image":
            url = f"data:;base64,{part.url}" if part.encoded else part.url
            data = await media.image(url, part.path)
            loaded.append(Image(data, part.detail, part.max_crops))
        elif part.modality == "video":
            data = await media.video(part.url, part.path)
            loaded.append(Video(data, part.frames, part.detail, part.max_crops))
        elif part.modality == "document":
            url = f"data:;base64,{part.url}" if part.encoded else part.url
            data = await media.document(url, part.path)
            loaded.append(Document(data, part.name, part.detail, part.media_type))
        elif part.modality != "audio":
            loaded.append(Item(part.modality, await media.item(part.url, part.path)))
        elif part.encoded:
            loaded.append(Audio(await media.input_audio(part.url, part.path)))
        else:
            loaded.append(Audio(await media.audio(part.url, part.path)))
    return tuple(loaded)


def file_data(data: str, name: str, path: str, detail: Detail = "auto") -> MediaPart:
    """The document of a data URL or base64."""
    return MediaPart(
        "document",
        data,
        path,
        encoded=data[:5].lower() != "data:",
        detail=detail,
        name=name,
        media_type=declared_type(data),
    )


def chat_turns(turns: Sequence[Turn]) -> list[InputTurn]:
    """The turns of OpenAI's chat messages. Raises ApiError for calls that aren't an assistant's, and for no content."""
    return [_chat_turn(turn, f"messages[{i}]") for i, turn in enumerate(turns)]


def _chat_turn(turn: Turn, path: str) -> InputTurn:
    parts: list[Text | MediaPart] = []
    if isinstance(turn.content, str):
        parts.append(Text(turn.content))
    for number, part in enumerate(turn.content if isinstance(turn.content, list) else ()):
        parts.append(_chat_part(part, f"{path}.content[{number}]"))
    functions = [call.function for call in turn.tool_calls or ()]
    if turn.function_call is not None:
        functions.append(turn.function_call)
    if functions:
        path = f"{path}.tool_calls" if turn.tool_calls else f"{path}.function_call"
        if turn.role != "assistant":
            raise ApiError(
                400,
                f"{path}: expected role 'assistant' for tool calls, found {turn.role!r}",
                param=path,
            )
        calls = [function.model_dump() for function in functions]
        return InputTurn(turn.role, with_call_parts(parts, calls, path))
    if turn.content is None:
        raise ApiError(400, f"{path}.content: expected text or parts", param=f"{path}.content")
    return InputTurn(ROLES.get(turn.role, turn.role), tuple(parts))


def _chat_part(part: RequestPart, path: str) -> Text | MediaPart:
    if isinstance(part, ImagePart):
        image = part.image_url
        url_path = f"{path}.image_url.url"
        return MediaPart(
            "image", image.url, url_path, detail=image.detail, max_crops=image.max_crops
        )
    if isinstance(part, AudioPart):
        data_path = f"{path}.input_audio.data"
        return MediaPart("audio", part.input_audio.data, data_path, encoded=True)
    if isinstance(part, AudioUrlPart):
        return MediaPart("audio", part.audio_url.url, f"{path}.audio_url.url")
    if isinstance(part, VideoPart):
        video = part.video_url
        return MediaPart(
            "video",
            video.url,
            f"{path}.video_url.url",
            detail=video.detail,
            max_crops=video.max_crops,
            frames=video.frames,
        )
    if isinstance(part, FilePart):
        return file_data(part.file.file_data, part.file.filename or "", f"{path}.file.file_data")
    if isinstance(part, ItemPart):
        data_path = f"{path}.{part.type}.data"
        return MediaPart(part.type, part.item.data, data_path, encoded=True)
    return Text(part.refusal if isinstance(part, RefusalPart) else part.text)
