"""The conversation behind `polyphi chat`: what a person types, and what the model answers.

>>> Terminal(polyphi.load("runs/nano/model")).run()
> /image cat.png
cat.png: 1,596 tokens, with your next message
> What is this?
A cat.
vision adapter · 1,607 tokens read (1,596 of pictures) · 3 written in 2.1 s, the first after 1.9 s, 1.4 a second

A mistake is one line, and the conversation goes on. Ctrl-C stops an answer and keeps what was said of it.
"""

import base64
import glob
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from polyphi.api import Phi
from polyphi.engine.sampling import check
from polyphi.messages import (
    Audio,
    Delta,
    Image,
    Message,
    Part,
    SamplingParams,
    Text,
    Video,
    adapter_for,
    normalize_adapter,
)
from polyphi.messages import media as parts_of
from polyphi.processing.media import decode_audio, decode_image
from polyphi.processing.video import expand_videos
from polyphi.services.endpoint import openai_part

HELP = """\
/image PATH [low|high] [CROPS]   a picture for your next message; low costs few tokens
/audio PATH                      a clip
/video PATH [low|high] [FRAMES]  a video, as 16 of its frames if you don't say how many
/system TEXT                     what the model is to be; nothing takes it away
/undo                            takes back what is attached, or else your last message and its answer
/retry                           the last answer once more, drawn anew where temperature is above 0
/clear                           a new conversation
/count                           what the conversation costs in tokens
/set [NAME VALUE]                shows or changes how answers are drawn: temperature, max_tokens, adapter ...
/save FILE.json, /load FILE.json the conversation, as OpenAI's messages
/help, /quit                     or Ctrl-D
A line that ends in \\ goes on in the next one; lines between \"\"\" and \"\"\" are one message. An empty line sends
what is attached. Ctrl-C stops an answer and keeps it as far as it came. Tab completes commands and paths."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a model must not send to a terminal: it could move the cursor, or worse. Tabs and line ends may pass."""
SETTINGS: dict[str, Any] = {
    f.name: f.type for f in fields(SamplingParams) if f.type in (int, float)
}
SETTINGS.pop("n")  # one answer at a time
QUOTES = '"""'


class Terminal:
    """One conversation. `read` asks for a line, as `input` does."""

    def __init__(
        self,
        phi: Phi,
        sampling: SamplingParams | None = None,
        adapter: str | None = "auto",
        *,
        console: Console | None = None,
        read: Callable[[str], str] = input,
    ) -> None:
        self.phi = phi
        self.sampling = sampling or SamplingParams()
        self.adapter = normalize_adapter(adapter)
        self.console = console or Console()
        self.read = read
        self.messages: list[Message] = []
        self.attached: list[Part] = []
        # A video is decoded once, not in every turn that still has it in its history.
        self._expanded = lru_cache(maxsize=8)(lambda message: expand_videos([message])[0])

    def run(self) -> None:
        """Reads and answers until the input ends."""
        complete_with_tab([f"/{name}" for name in COMMANDS])
        self.tell("/help tells what can be done here; Ctrl-D leaves")
        while True:
            try:
                line = self._message()
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
                elif line.strip() or self.attached:
                    self.ask(line.strip())
            except KeyboardInterrupt:
                self.console.print()
                self.tell("stopped")
            except OSError as error:
                told = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
                self.tell(told, "yellow")
            except (ValueError, RuntimeError) as error:
                self.tell(" ".join(str(error).split()), "yellow")

    def tell(self, text: str, style: str = "dim") -> None:
        """What the program says, as apart from the model."""
        self.console.print(
            text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def _message(self) -> str:
        """A line, or several that are one."""
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

    def ask(self, text: str) -> None:
        """A message, with what is attached, and its answer. Without an answer the message is taken back, and what was
        attached waits for the next one."""
        attached, self.attached = self.attached, []
        self.messages.append(Message.user(*attached, *([text] if text else [])))
        answered = False
        try:
            answered = self._answer()
        finally:
            if not answered:
                self.messages.pop()
                self.attached = attached

    def _answer(self) -> bool:
        """Streams the next answer into the conversation. False if it was stopped before it had begun."""
        sent = self._sent()
        cost = self.phi.count(sent)
        context = self.phi.context
        if cost.total >= context:
            raise ValueError(
                f"the conversation has {cost.total:,} tokens, {context:,} are the most; /undo or /clear makes room"
            )
        sampling = replace(
            self.sampling, max_tokens=min(self.sampling.max_tokens, context - cost.total)
        )
        start, first, text, last = time.perf_counter(), None, "", Delta("", "stopped")
        try:
            deltas = self.phi.stream(sent, sampling=sampling, adapter=self.adapter)
            with closing(deltas):  # type: ignore[type-var]
                for delta in deltas:
                    first = first or time.perf_counter()
                    text, last = text + delta.text, delta
                    show(self.console, delta.text)
        except KeyboardInterrupt:
            last = Delta("", "stopped")
        seconds = time.perf_counter() - start
        self.console.print()
        if last.finish_reason == "stopped" and not text:
            self.tell("stopped before the answer began; the message is taken back")
            return False
        self.messages.append(Message.assistant(text))
        media = [
            f"{count:,} of {kind}"
            for count, kind in ((cost.image, "pictures"), (cost.audio, "clips"))
            if count
        ]
        said = [
            f"{self._adapter_used(sent) or 'no'} adapter",
            f"{cost.total:,} tokens read" + (f" ({', '.join(media)})" if media else ""),
            self._written(text, last, seconds, None if first is None else first - start),
        ]
        if last.finish_reason == "length":
            said.append(f"cut at max_tokens {sampling.max_tokens:,}")
        elif last.finish_reason != "stop":
            said.append(str(last.finish_reason))
        self.tell(" · ".join(said))
        return True

    def _written(self, text: str, last: Delta, seconds: float, first: float | None) -> str:
        """How much was answered, and how fast."""
        if last.completion is None:  # a stopped answer: as the tokenizer would write it
            count = len(self.phi.tokenizer.encode(text))
            told = f"about {count:,} written in {seconds:.1f} s"
        else:
            count = len(last.completion.tokens)
            told = f"{count:,} written in {seconds:.1f} s"
        if first is not None:
            told += f", the first after {first:.1f} s"
        rate = count / seconds
        return f"{told}, {rate:,.0f} a second" if rate >= 10 else f"{told}, {rate:.1f} a second"

    def _sent(self) -> list[Message]:
        return [self._expanded(m) if parts_of([m], Video) else m for m in self.messages]

    def _adapter_used(self, messages: Sequence[Message]) -> str | None:
        if self.adapter != "auto":
            return self.adapter
        wanted = adapter_for(messages)
        return wanted if wanted in self.phi.config.adapters else None

    # ---- commands

    def command(self, name: str, argument: str) -> None:
        """One `/name argument`. Raises ValueError, in one line, for a wrong one."""
        if name not in COMMANDS:
            raise ValueError(
                f"there is no /{name}, /help shows what there is; a message may begin with a space"
            )
        COMMANDS[name](self, argument)

    def _attach(self, kind: type[Image] | type[Audio] | type[Video], argument: str) -> None:
        path, words = _path(argument)
        wanted: dict[str, Any] = {}
        number = {Image: "max_crops", Video: "frames"}.get(kind)
        for word in words:
            if number and word.isdecimal():
                wanted[number] = int(word)
            elif number and word in ("auto", "low", "high"):
                wanted["detail"] = word
            else:
                raise ValueError(f"{word!r} is not understood after a path; see /help")
        encoder = self.phi.config.audio if kind is Audio else self.phi.config.vision
        if encoder is None:
            raise ValueError(f"this model has no encoder for /{kind.__name__.lower()}")
        part = kind(path, **wanted)
        shown = self._expanded(Message.user(part)) if kind is Video else Message.user(part)
        for item in shown.parts:  # what is damaged is told now, not with the next message
            if isinstance(item, Image):
                decode_image(item.source)
            elif isinstance(item, Audio):
                decode_audio(item.source)
        cost = self.phi.count([shown])
        frames = f"{len(shown.parts)} frames, " if kind is Video else ""
        self.attached.append(part)
        self.tell(
            f"{path.name}: {frames}{cost.image + cost.audio:,} tokens, with your next message"
        )

    def _image(self, argument: str) -> None:
        self._attach(Image, argument)

    def _audio(self, argument: str) -> None:
        self._attach(Audio, argument)

    def _video(self, argument: str) -> None:
        self._attach(Video, argument)

    def _system(self, argument: str) -> None:
        had = bool(self.messages) and self.messages[0].role == "system"
        tools = self.messages[0].tools if had else None
        self.messages[: int(had)] = [Message.system(argument, tools)] if argument or tools else []
        self.tell("the system message is set" if argument else "there is no system message")

    def _undo(self, _: str) -> None:
        if self.attached:
            self.tell(f"{_name(self.attached.pop())} is attached no more")
            return
        asked = [i for i, m in enumerate(self.messages) if m.role == "user"]
        if not asked:
            raise ValueError("there is nothing to take back")
        said = self.messages[asked[-1]].text
        del self.messages[asked[-1] :]
        self.tell(f"taken back: {said[:60]!r}" + ("..." if len(said) > 60 else ""))

    def _retry(self, _: str) -> None:
        if not any(m.role == "user" for m in self.messages):
            raise ValueError("there is no answer yet; ask something first")
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
        kept = [m for m in self.messages[:1] if m.role == "system"]
        self.messages, self.attached = kept, []
        self.tell("a new conversation" + (" with the same system message" if kept else ""))

    def _count(self, _: str) -> None:
        waiting = [Message.user(*self.attached)] if self.attached else []
        if not self.messages and not waiting:
            raise ValueError("there is no message yet")
        cost = self.phi.count([*self._sent(), *map(self._expanded, waiting)])
        context = self.phi.context
        self.tell(
            f"{cost.total:,} of {context:,} tokens: text {cost.text:,}, pictures {cost.image:,}, clips {cost.audio:,}"
        )

    def _set(self, argument: str) -> None:
        name, _, value = argument.replace("=", " ").partition(" ")
        value = value.strip()
        if not name:
            shown = [f"{key} {getattr(self.sampling, key)}" for key in SETTINGS]
            self.tell(", ".join([*shown, f"adapter {self.adapter or 'none'}"]))
            return
        if name == "adapter":
            known = ["auto", "none", *self.phi.config.adapters]
            if value not in known:
                raise ValueError(f"adapter is one of {', '.join(known)}, found {value!r}")
            self.adapter = None if value == "none" else value
        elif name in SETTINGS:
            try:
                number: Any = SETTINGS[name](value)
            except ValueError:
                raise ValueError(f"{name} is a number, found {value!r}") from None
            changed = replace(self.sampling, **{name: number})
            check(changed)
            self.sampling = changed
        else:
            known = [*SETTINGS, "adapter"]
            raise ValueError(f"there is no {name!r} to set; there are {', '.join(known)}")
        self.tell(f"{name} is {value}")

    def _save(self, argument: str) -> None:
        if not argument:
            raise ValueError("/save needs the name of a file, such as talk.json")
        path, _ = _path(argument)
        if path.exists() and path.suffix != ".json":
            raise ValueError(f"{path} is there already and no .json file; it stays as it is")
        text = json.dumps([as_openai(m) for m in self.messages], ensure_ascii=False, indent=1)
        path.write_text(text + "\n", encoding="utf-8")
        self.tell(f"{len(self.messages)} messages are in {path}")

    def _load(self, argument: str) -> None:
        path, _ = _path(argument)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            said = value["messages"] if isinstance(value, dict) else value
            self.messages = [Message.parse(m, path.parent, video=True) for m in said]
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
            raise ValueError(f"{path} holds no list of OpenAI's messages") from None
        self.attached = []
        waits = self.messages and self.messages[-1].role == "user"
        self.tell(
            f"{len(self.messages)} messages" + ("; /retry answers the last one" if waits else "")
        )

    def _help(self, _: str) -> None:
        self.tell(HELP)


COMMANDS: dict[str, Callable[[Terminal, str], None]] = {
    "image": Terminal._image,
    "audio": Terminal._audio,
    "video": Terminal._video,
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


def once(deltas: Iterator[Delta], console: Console) -> None:
    """One answer, as it comes."""
    with closing(deltas):  # type: ignore[type-var]
        for delta in deltas:
            show(console, delta.text)
    console.print()


def show(console: Console, text: str) -> None:
    """What a model says, to the letter, but for what a terminal would obey."""
    console.file.write(CONTROL.sub("\ufffd", text))
    console.file.flush()


def as_openai(message: Message) -> dict[str, Any]:
    """A message as `Message.parse(..., video=True)` reads it back. Pictures and clips stand in it whole, so that it can
    be sent anywhere; a video stays where it is."""
    parts = [p for p in message.parts if p != Text("")]
    written: dict[str, Any] = {"role": message.role}
    if all(isinstance(p, Text) for p in parts):
        written["content"] = message.text
    else:
        written["content"] = [_openai_part(p) for p in parts]
    return written | ({"tools": message.tools} if message.tools else {})


def _openai_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Video):
        if isinstance(part.source, bytes):
            url = "data:video/mp4;base64," + base64.b64encode(part.source).decode()
        else:
            url = str(Path(part.source).resolve())
        value: dict[str, Any] = {"url": url, "frames": part.frames, "detail": part.detail}
        written: dict[str, Any] = {"type": "video_url", "video_url": value}
    else:
        written = openai_part(part)
        value = written.get("image_url", {})
    if isinstance(part, Image | Video) and part.max_crops is not None:
        value["max_crops"] = part.max_crops
    return written


def _path(argument: str) -> tuple[Path, list[str]]:
    """A path, and the words after it. It may have spaces, as it is, in quotes or as a shell escapes them."""
    if not argument:
        raise ValueError("which file? Its path is missing")
    whole = Path(argument).expanduser()
    if whole.exists():
        return whole, []
    try:
        first, *words = shlex.split(argument)
    except ValueError as error:
        raise ValueError(f"{argument!r} is no path: {error}") from None
    return Path(first).expanduser(), words


def _name(part: Part) -> str:
    assert not isinstance(part, Text) and isinstance(part.source, str | Path)
    return Path(part.source).name


def complete_with_tab(commands: Sequence[str]) -> None:
    """Lines can be edited, earlier ones come back with the arrow keys, and Tab completes commands and paths."""
    if not sys.stdin.isatty():
        return
    try:
        import readline
    except ImportError:  # Windows has none, and edits lines by itself
        return

    def complete(text: str, state: int) -> str | None:
        if readline.get_begidx() == 0:
            found = [f"{c} " for c in commands if c.startswith(text)]
        else:
            paths = glob.glob(glob.escape(str(Path(text).expanduser())) + "*") if text else []
            found = [p + "/" if Path(p).is_dir() else p for p in sorted(paths)]
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
