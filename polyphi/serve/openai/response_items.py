"""The output items of a response, and the events of their growth.

>>> items = Items(tokens.with_alternatives)
>>> events = [*items.add(output.add(delta), delta.logprobs), *items.finish("length")]
>>> items.items
[{"type": "reasoning", ...}, {"type": "message", ...}, {"type": "function_call", ...}]

Adjacent text is one item; a call ends a message, so text after it begins another one.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from polyphi.decoding.output import OutputPart
from polyphi.decoding.reasoning import Reasoning
from polyphi.decoding.tool_calls import CallDelta
from polyphi.types.completion import TokenLogprob

Event = dict[str, Any]
TextItem = Literal["reasoning", "message"]
ItemType = Literal["reasoning", "message", "function_call"]
PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
PART_TYPES = {"reasoning": "reasoning_text", "message": "output_text"}
TEXTS = {"output_text": ("text", "logprobs"), "reasoning_text": ("text",)}
"""The types of parts with a text, and their fields at its end."""


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


class Items:
    """The output items of a response. `entry`: converts a token's log-probability; None where none are requested.
    Tokens of reasoning and calls have no entries; a token whose text isn't final yet belongs to the text that
    follows."""

    def __init__(self, entry: Callable[[TokenLogprob], dict[str, Any]] | None) -> None:
        self.items: list[dict[str, Any]] = []
        self._entry = entry
        self._open: ItemType | None = None  # the type of the last item, while it grows
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._pending: list[TokenLogprob] = []

    def add(self, parts: Iterable[OutputPart], logprobs: Sequence[TokenLogprob]) -> list[Event]:
        """The events of an output delta's parts."""
        self._pending += logprobs
        events: list[Event] = []
        for part in parts:
            if isinstance(part, CallDelta):
                self._pending = []
                events += self._call(part)
                continue
            type_: TextItem = "reasoning" if isinstance(part, Reasoning) else "message"
            if self._open != type_:
                events += [*self._close("completed"), *self._start(type_)]
            events.append(self._delta(type_, part.text if isinstance(part, Reasoning) else part))
        return events

    def finish(self, finish_reason: str | None) -> list[Event]:
        """The events at the end of the answer. Without any output there is an empty message, with a delta: clients
        expect one before the text is done."""
        events: list[Event] = (
            [] if self.items else [*self._start("message"), self._delta("message", "")]
        )
        return [*events, *self._close("incomplete" if finish_reason == "length" else "completed")]

    def _event(self, type_: str, **fields: Any) -> Event:
        index = len(self.items) - 1
        return {"type": f"response.{type_}", "output_index": index, **fields}

    def _of_part(self, type_: str, **fields: Any) -> Event:
        return self._event(type_, item_id=self.items[-1]["id"], content_index=0, **fields)

    def _start(self, type_: TextItem) -> list[Event]:
        head = {"id": new_id(PREFIXES[type_]), "type": type_, "status": "in_progress"}
        more: dict[str, Any] = {"role": "assistant"} if type_ == "message" else {"summary": []}
        self.items.append({**head, **more, "content": []})
        self._open, self._texts, self._logprobs = type_, [], []
        return [
            self._event("output_item.added", item=self.items[-1]),
            self._of_part("content_part.added", part=self._part()),
        ]

    def _part(self) -> dict[str, Any]:
        """The content part of the open item, as far as it goes."""
        assert self._open
        part: dict[str, Any] = {"type": PART_TYPES[self._open], "text": "".join(self._texts)}
        if self._open == "message":
            part |= {"annotations": [], "logprobs": list(self._logprobs)}
        return part

    def _delta(self, type_: TextItem, text: str) -> Event:
        self._texts.append(text)
        pending, self._pending = self._pending, []
        if type_ == "reasoning":
            return self._of_part("reasoning_text.delta", delta=text)
        entries = [self._entry(token) for token in pending] if self._entry else []
        self._logprobs += entries
        return self._of_part("output_text.delta", delta=text, logprobs=entries)

    def _close(self, status: str) -> list[Event]:
        if self._open is None or self._open == "function_call":  # a call ends with its last delta
            return []
        part = self._part()
        name = PART_TYPES[self._open]
        logprobs = {"logprobs": part["logprobs"]} if self._open == "message" else {}
        self.items[-1] = {**self.items[-1], "status": status, "content": [part]}
        self._open = None
        return [
            self._of_part(f"{name}.done", text=part["text"], **logprobs),
            self._of_part("content_part.done", part=part),
            self._event("output_item.done", item=self.items[-1]),
        ]

    def _call(self, delta: CallDelta) -> list[Event]:
        events: list[Event] = []
        if delta.name is not None:
            events += self._close("completed")
            head = {"id": new_id(PREFIXES["function_call"]), "type": "function_call"}
            call = {"call_id": new_id("call"), "name": delta.name, "arguments": ""}
            self.items.append({**head, "status": "in_progress", **call})
            self._open, self._texts = "function_call", []
            events.append(self._event("output_item.added", item=self.items[-1]))
        item_id, name = self.items[-1]["id"], self.items[-1]["name"]
        if delta.arguments:
            self._texts.append(delta.arguments)
            of_item = {"item_id": item_id, "delta": delta.arguments}
            events.append(self._event("function_call_arguments.delta", **of_item))
        if delta.complete is None:
            return events
        arguments, self._open = "".join(self._texts), None
        status = "completed" if delta.complete else "incomplete"
        self.items[-1] = {**self.items[-1], "status": status, "arguments": arguments}
        of_item = {"item_id": item_id, "name": name, "arguments": arguments}
        return [
            *events,
            self._event("function_call_arguments.done", **of_item),
            self._event("output_item.done", item=self.items[-1]),
        ]


def stored_events(response: dict[str, Any]) -> Iterator[Event]:
    """The events of a response that has ended: each text and each call's arguments are one delta."""
    start = {**response, "status": "in_progress", "output": [], "usage": None}
    for type_ in ("created", "in_progress"):
        yield {"type": f"response.{type_}", "response": start}
    for index, item in enumerate(response["output"]):
        for event in _item_events(item):
            yield {**event, "type": f"response.{event['type']}", "output_index": index}
    yield {"type": f"response.{response['status']}", "response": response}


def _item_events(item: dict[str, Any]) -> Iterator[Event]:
    is_call = item["type"] == "function_call"
    empty: dict[str, Any] = {"arguments": ""} if is_call else {"content": []}
    yield {"type": "output_item.added", "item": {**item, "status": "in_progress", **empty}}
    if is_call:
        name, of_item = "function_call_arguments", {"item_id": item["id"]}
        yield {"type": f"{name}.delta", **of_item, "delta": item["arguments"]}
        of_item |= {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": f"{name}.done", **of_item}
    for number, part in enumerate(() if is_call else item["content"]):
        of_part = {"item_id": item["id"], "content_index": number}
        fields = {key: part[key] for key in TEXTS[part["type"]]}
        lists: dict[str, Any] = {key: [] for key in fields if key != "text"}
        yield {"type": "content_part.added", **of_part, "part": {**part, "text": "", **lists}}
        delta = {"delta": part["text"], **{key: part[key] for key in lists}}
        yield {"type": f"{part['type']}.delta", **of_part, **delta}
        yield {"type": f"{part['type']}.done", **of_part, **fields}
        yield {"type": "content_part.done", **of_part, "part": part}
    yield {"type": "output_item.done", "item": item}
