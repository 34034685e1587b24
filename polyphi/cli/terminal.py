"""The interactive conversation of `polyphi chat`: commands and messages of the user, and the model's answers.

>>> Terminal(polyphi.load("runs/nano/model")).run()
> /image cat.png
cat.png: 1,596 tokens, with your next message
> What is this?
A cat.
vision adapter · 1,607 prompt tokens (1,596 image) · 3 tokens in 2.1 s, first after 1.9 s, 1.4 tokens/s

An error prints one line, and the conversation continues. Ctrl-C stops an answer and keeps the partial text.
"""

import base64
import glob
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from polyphi.api import Phi
from polyphi.cli.inputs import check_part, is_address, source
from polyphi.cli.printable import PrintableConsole, printable, write_data
from polyphi.decoding.reasoning import Reasoning, ReasoningParser
from polyphi.engine.sampling import check
from polyphi.processing.expansion import expand
from polyphi.runtime.files import write_whole
from polyphi.text.quantity import quantity
from polyphi.types.completion import Delta
from polyphi.types.media_sources import MediaSource
from polyphi.types.messages import Message
from polyphi.types.messages import media as parts_of
from polyphi.types.openai_parts import openai_part
from polyphi.types.parts import Audio, Image, Item, Part, Text, Video
from polyphi.types.routing import ROUTES, modalities_of, normalize_adapter, route
from polyphi.types.sampling import SamplingParams

HELP = """\
/image PATH [low|high] [CROPS]   attach an image to the next message, by path or http(s) address; low needs few tokens
/audio PATH                      attach an audio file, by path or http(s) address
/video PATH [low|high] [FRAMES]  attach a video, as 16 frames by default
/part MODALITY PATH              attach a file of a further modality (--modality)
/system TEXT                     set the system message; without a text, remove it
/undo                            remove the last attachment, or else your last message and its answer
/retry                           generate the last answer again, with a new seed
/clear                           start a new conversation
/count                           count the tokens of the conversation
/set [NAME VALUE]                show or change sampling parameters: temperature, max_tokens, adapter ...
/save FILE.json, /load FILE.json write or read the conversation, as OpenAI's messages
/help, /quit                     or Ctrl-D
A line that ends in \\ continues in the next one; lines between \"\"\" and \"\"\" are one message. An empty line sends
the attachments. Ctrl-C stops an answer and keeps the partial text. Tab completes commands and paths."""
SETTINGS: dict[str, Any] = {
    f.name: f.type for f in fields(SamplingParams) if f.type in (int, float)
}
SETTINGS.pop("n")  # one answer at a time
QUOTES = '"""'


class Terminal:
    """One conversation. `read` prompts for a line, as `input` does."""

    def __init__(
        self,
        phi: Phi,
        sampling: SamplingParams | None = None,
        adapter: str | None = "auto",
        *,
        system: str | None = None,
        console: Console | None = None,
        read: Callable[[str], str] = input,
    ) -> None:
        self.phi = phi
        self.sampling = sampling or SamplingParams()
        self.adapter = normalize_adapter(adapter)
        self.console = console or PrintableConsole()
        self.read = read
        self.messages: list[Message] = [Message.system(system)] if system else []
        self.attachments: list[Part] = []
        # A video is decoded once, not for every turn of its conversation.
        self._expanded = lru_cache(maxsize=8)(lambda message: expand([message])[0])

    def run(self) -> None:
        """Reads and answers until the input ends."""
        complete_with_tab([f"/{name}" for name in COMMANDS])
        self.report("/help lists the commands; Ctrl-D quits")
        while True:
            try:
                line = self._read_message()
            except EOFError:
                return
            except KeyboardInterrupt:
                self.console.print()
                continue
            try:
                if line.startswith("/") and "\n" not in line:
                    name, _, argument = line[1:].partition(" ")
                    if name in ("quit", "exit"):
                        return
                    self.command(name, argument.strip())
                elif line.strip() or self.attachments:
                    self.send(line.strip())
            except KeyboardInterrupt:
                self.console.print()
                self.report("stopped")
            except OSError as error:
                message = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
                self.report(message, "yellow")
            except (ValueError, RuntimeError) as error:
                self.report(" ".join(str(error).split()), "yellow")

    def report(self, text: str, style: str = "dim") -> None:
        """Prints a line of the program, in another style than the model's text."""
        self.console.print(
            text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def _read_message(self) -> str:
        """The next message: one line, or several joined lines."""
        line = self.read("> ")
        if line.startswith(QUOTES):
            line = line.removeprefix(QUOTES)
            while not line.rstrip().endswith(QUOTES):
                line += "\n" + self.read(". ")
            return line.rstrip().removesuffix(QUOTES)
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self.read(". ")
        return line

    # ---- answers

    def send(self, text: str) -> None:
        """Sends a message with the attachments and prints the answer. Without an answer the message is removed, and the
        attachments stay for the next one."""
        attachments, self.attachments = self.attachments, []
        self.messages.append(Message.user(*attachments, *([text] if text else [])))
        answered = False
        try:
            answered = self._answer()
        finally:
            if not answered:
                self.messages.pop()
                self.attachments = attachments

    def _answer(self) -> bool:
        """Streams the next answer into the conversation. Returns False if it was stopped before the first token."""
        messages = self._expanded_messages()
        tokens = self.phi.count(messages)
        context = self.phi.context
        if tokens.total >= context:
            raise ValueError(
                f"the conversation has {tokens.total:,} tokens, the context holds {context:,}; use /undo or /clear"
            )
        sampling = replace(
            self.sampling, max_tokens=min(self.sampling.max_tokens, context - tokens.total)
        )
        printer = AnswerPrinter(self.console, reasoning=self.phi.reasoning)
        start, first, text, last = time.perf_counter(), None, "", Delta("", "stopped")
        try:
            deltas = self.phi.stream(messages, sampling=sampling, adapter=self.adapter)
            with closing(deltas):  # type: ignore[type-var]
                for delta in deltas:
                    first = first or time.perf_counter()
                    text, last = text + delta.text, delta
                    printer.add(delta)
        except KeyboardInterrupt:
            last = Delta("", "stopped")
        seconds = time.perf_counter() - start
        self.console.print()
        if last.finish_reason == "stopped" and not text:
            self.report("stopped before the answer began; the message was removed")
            return False
        self.messages.append(Message.assistant(printer.content))
        media = [
            f"{count:,} {name}"
            for name, count in sorted(tokens.inputs.items(), reverse=True)
            if count
        ]
        status = [
            f"{self._adapter_used(messages) or 'no'} adapter",
            f"{quantity(tokens.total, 'prompt token')}"
            + (f" ({', '.join(media)})" if media else ""),
            self._generation_stats(text, last, seconds, None if first is None else first - start),
        ]
        if last.finish_reason == "length":
            status.append(f"cut at max_tokens {sampling.max_tokens:,}")
        elif last.finish_reason != "stop":
            status.append(str(last.finish_reason))
        self.report(" · ".join(status))
        return True

    def _generation_stats(self, text: str, last: Delta, seconds: float, first: float | None) -> str:
        """The number of generated tokens and their speed."""
        if last.completion is None:  # a stopped answer: count its text's tokens
            count = len(self.phi.tokenizer.encode(text))
            stats = f"about {quantity(count, 'token')} in {seconds:.1f} s"
        else:
            count = len(last.completion.tokens)
            stats = f"{quantity(count, 'token')} in {seconds:.1f} s"
        if first is not None:
            stats += f", first after {first:.1f} s"
        rate = count / seconds
        return f"{stats}, {rate:,.0f} tokens/s" if rate >= 10 else f"{stats}, {rate:.1f} tokens/s"

    def _expanded_messages(self) -> list[Message]:
        return [self._expanded(m) if parts_of([m], Video) else m for m in self.messages]

    def _adapter_used(self, messages: Sequence[Message]) -> str | None:
        if self.adapter != "auto":
            return self.adapter
        routes = dict(ROUTES)
        for own in self.phi.config.further.values():
            routes |= own.modality.routes
        adapter = route(modalities_of(messages), routes)
        return adapter if adapter in self.phi.config.adapters else None

    # ---- commands

    def command(self, name: str, argument: str) -> None:
        """Runs the command `/name argument`. Raises ValueError for an invalid one."""
        if name not in COMMANDS:
            raise ValueError(
                f"unknown command /{name}; see /help. To send it as a message, begin with a space"
            )
        COMMANDS[name](self, argument)

    def _attach(self, part_type: type[Image] | type[Audio] | type[Video], argument: str) -> None:
        name, path, words = self._source(part_type, argument)
        options: dict[str, Any] = {}
        option = {Image: "max_crops", Video: "frames"}.get(part_type)
        for word in words:
            if option and word.isdecimal():
                options[option] = int(word)
            elif option and word in ("auto", "low", "high"):
                options["detail"] = word
            else:
                raise ValueError(f"unknown option {word!r} after the path; see /help")
        encoder = self.phi.config.audio if part_type is Audio else self.phi.config.vision
        if encoder is None:
            raise ValueError(f"this model has no encoder for /{part_type.__name__.lower()}")
        part = part_type(path, **options)
        message = self._expanded(Message.user(part)) if part_type is Video else Message.user(part)
        tokens = self.phi.count([message])
        for item in message.parts:  # a damaged file raises now, not with the next message
            check_part(item, self.phi.processor.caps)
        frames = f"{quantity(len(message.parts), 'frame')}, " if part_type is Video else ""
        self.attachments.append(part)
        self.report(
            f"{name}: {frames}{quantity(tokens.image + tokens.audio, 'token')}, with your next message"
        )

    def _source(
        self, part_type: type[Image] | type[Audio] | type[Video], argument: str
    ) -> tuple[str, MediaSource, list[str]]:
        """(name, path or bytes, the words after it) of an attachment; an image or audio clip may have an address."""
        address, *words = argument.split() or [""]
        if part_type is not Video and is_address(address):
            modality: Literal["image", "audio"] = "image" if part_type is Image else "audio"
            return address, source(address, modality), words
        path, words = _path(argument)
        return path.name, path, words

    def _image(self, argument: str) -> None:
        self._attach(Image, argument)

    def _audio(self, argument: str) -> None:
        self._attach(Audio, argument)

    def _video(self, argument: str) -> None:
        self._attach(Video, argument)

    def _part(self, argument: str) -> None:
        name, _, rest = argument.partition(" ")
        path, words = _path(rest.strip())
        further = self.phi.config.further
        if name not in further or words:
            raise ValueError(
                f"expected /part MODALITY PATH with a modality of this model ({', '.join(further) or 'it has none'}), "
                f"found /part {argument}"
            )
        part = Item(name, path)
        tokens = self.phi.count([Message.user(part)]).inputs[name]  # an unreadable file raises now
        self.attachments.append(part)
        self.report(f"{path.name}: {quantity(tokens, 'token')}, with your next message")

    def _system(self, argument: str) -> None:
        had = bool(self.messages) and self.messages[0].role == "system"
        tools = self.messages[0].tools if had else None
        self.messages[: int(had)] = [Message.system(argument, tools)] if argument or tools else []
        self.report("the system message is set" if argument else "there is no system message")

    def _undo(self, _: str) -> None:
        if self.attachments:
            self.report(f"removed the attachment {_name(self.attachments.pop())}")
            return
        user_turns = [i for i, m in enumerate(self.messages) if m.role == "user"]
        if not user_turns:
            raise ValueError("there is no message to remove")
        text = self.messages[user_turns[-1]].text
        del self.messages[user_turns[-1] :]
        self.report(f"removed: {text[:60]!r}" + ("..." if len(text) > 60 else ""))

    def _retry(self, _: str) -> None:
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("there is no answer yet; send a message first")
        before = self.messages
        if before[-1].role == "assistant":
            self.messages = before[:-1]
            self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        answered = False
        try:
            answered = self._answer()
        finally:
            if not answered:
                self.messages = before

    def _clear(self, _: str) -> None:
        system_messages = [m for m in self.messages[:1] if m.role == "system"]
        self.messages, self.attachments = system_messages, []
        self.report(
            "a new conversation" + (" with the same system message" if system_messages else "")
        )

    def _count(self, _: str) -> None:
        pending = [Message.user(*self.attachments)] if self.attachments else []
        if not self.messages and not pending:
            raise ValueError("there is no message yet")
        tokens = self.phi.count([*self._expanded_messages(), *map(self._expanded, pending)])
        context = self.phi.context
        self.report(
            f"{tokens.total:,} of {context:,} tokens: {tokens.text:,} text, {tokens.image:,} image, "
            f"{tokens.audio:,} audio"
            + "".join(
                f", {tokens.inputs.get(name, 0):,} {name}" for name in self.phi.config.further
            )
        )

    def _set(self, argument: str) -> None:
        name, _, value = argument.replace("=", " ").partition(" ")
        value = value.strip()
        if not name:
            values = [f"{key} {getattr(self.sampling, key)}" for key in SETTINGS]
            self.report(", ".join([*values, f"adapter {self.adapter or 'none'}"]))
            return
        if name == "adapter":
            names = ["auto", "none", *self.phi.config.adapters]
            if value not in names:
                raise ValueError(f"adapter: expected one of {', '.join(names)}, found {value!r}")
            self.adapter = normalize_adapter(value)
        elif name in SETTINGS:
            try:
                number: Any = SETTINGS[name](value)
            except ValueError:
                raise ValueError(f"{name}: expected a number, found {value!r}") from None
            changed = replace(self.sampling, **{name: number})
            check(changed)
            self.sampling = changed
        else:
            names = [*SETTINGS, "adapter"]
            raise ValueError(f"unknown setting {name!r}; expected one of {', '.join(names)}")
        self.report(f"{name} is {value}")

    def _save(self, argument: str) -> None:
        if not argument:
            raise ValueError("/save needs the name of a file, such as talk.json")
        path, _ = _path(argument)
        if path.exists() and path.suffix != ".json":
            raise ValueError(f"{path} exists and is no .json file; choose another name")
        text = json.dumps([as_openai(m) for m in self.messages], ensure_ascii=False, indent=1)
        write_whole(path, text + "\n")
        self.report(f"wrote {quantity(len(self.messages), 'message')} to {path}")

    def _load(self, argument: str) -> None:
        path, _ = _path(argument)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            messages = value["messages"] if isinstance(value, dict) else value
            self.messages = [Message.parse(m, path.parent) for m in messages]
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{path}: expected a list of OpenAI's messages") from None
        self.attachments = []
        unanswered = self.messages and self.messages[-1].role == "user"
        self.report(
            f"{quantity(len(self.messages), 'message')}"
            + ("; /retry answers the last one" if unanswered else "")
        )

    def _help(self, _: str) -> None:
        self.report(HELP)


COMMANDS: dict[str, Callable[[Terminal, str], None]] = {
    "image": Terminal._image,
    "audio": Terminal._audio,
    "video": Terminal._video,
    "part": Terminal._part,
    "system": Terminal._system,
    "undo": Terminal._undo,
    "retry": Terminal._retry,
    "clear": Terminal._clear,
    "count": Terminal._count,
    "set": Terminal._set,
    "save": Terminal._save,
    "load": Terminal._load,
    "help": Terminal._help,
}


def once(deltas: Iterator[Delta], console: Console, *, reasoning: bool = False) -> None:
    """Prints one streamed answer."""
    printer = AnswerPrinter(console, reasoning=reasoning)
    with closing(deltas):  # type: ignore[type-var]
        for delta in deltas:
            printer.add(delta)
    console.print()


class AnswerPrinter:
    """Prints the deltas of an answer. `content`: its text so far; with `reasoning`, a `<think>` block isn't part of it,
    and is printed in dim letters."""

    def __init__(self, console: Console, *, reasoning: bool) -> None:
        self.content = ""
        self._console = console
        self._parser = ReasoningParser() if reasoning else None
        self._after_reasoning = False

    def add(self, delta: Delta) -> None:
        parts: list[Reasoning | str] = [delta.text]
        if self._parser is not None:
            parts = self._parser.add(delta.text)
            parts += self._parser.finish() if delta.finish_reason else []
        # An interrupt while printing loses no text.
        self.content += "".join(part for part in parts if isinstance(part, str))
        for part in parts:
            if isinstance(part, Reasoning):
                self._console.out(printable(part.text), style="dim", highlight=False, end="")
                self._after_reasoning = True
                continue
            write_data(self._console, "\n\n" + part if self._after_reasoning else part)
            self._after_reasoning = False


def as_openai(message: Message) -> dict[str, Any]:
    """The OpenAI dict of a message, for `Message.parse`. Images and audio are embedded, so that the
    file is complete; a video is stored as its path."""
    parts = [p for p in message.parts if p != Text("")]
    result: dict[str, Any] = {"role": message.role}
    if all(isinstance(p, Text) for p in parts):
        result["content"] = message.text
    else:
        result["content"] = [_openai_part(p) for p in parts]
    return result | ({"tools": message.tools} if message.tools else {})


def _openai_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Video):
        if isinstance(part.source, bytes):
            url = "data:video/mp4;base64," + base64.b64encode(part.source).decode()
        else:
            url = str(Path(part.source).resolve())
        value: dict[str, Any] = {"url": url, "frames": part.frames, "detail": part.detail}
        result: dict[str, Any] = {"type": "video_url", "video_url": value}
    else:
        result = openai_part(part)
        value = result.get("image_url", {})
    if isinstance(part, Image | Video) and part.max_crops is not None:
        value["max_crops"] = part.max_crops
    return result


def _path(argument: str) -> tuple[Path, list[str]]:
    """A path and the words after it. The path may contain spaces, plain, in quotes or escaped as in a shell."""
    if not argument:
        raise ValueError("expected the path of a file, found none")
    path = Path(argument).expanduser()
    if path.exists():
        return path, []
    try:
        first, *words = shlex.split(argument)
    except ValueError as error:
        raise ValueError(f"{argument!r} is not a valid path: {error}") from None
    return Path(first).expanduser(), words


def _name(part: Part) -> str:
    assert not isinstance(part, Text)
    if isinstance(part.source, str | Path):
        return Path(part.source).name
    return f"({part.modality} of an address)"


def complete_with_tab(commands: Sequence[str]) -> None:
    """Enables line editing, a history with the arrow keys, and completion of commands and paths with Tab."""
    if not sys.stdin.isatty():
        return
    try:
        import readline
    except ImportError:  # Windows has no readline; its console edits lines itself
        return

    def complete(text: str, state: int) -> str | None:
        if readline.get_begidx() == 0:
            matches = [f"{c} " for c in commands if c.startswith(text)]
        else:
            paths = glob.glob(glob.escape(str(Path(text).expanduser())) + "*") if text else []
            matches = [p + "/" if Path(p).is_dir() else p for p in sorted(paths)]
        return matches[state] if state < len(matches) else None

    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
