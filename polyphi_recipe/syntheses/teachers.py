"""Teachers: models that answer synthesis requests, behind an endpoint or a command."""

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polyphi.types.completion import Completion
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from polyphi_eval.services.endpoint import RequestRejected, chat_body

GREEDY = SamplingParams()


class Teacher(Protocol):
    """A model that answers chat requests: an `Endpoint` or a `Command`. `name` is part of the cache's key. `chat`
    raises `RequestRejected` for a request that the teacher refuses, and any other error for a fault of the teacher."""

    @property
    def name(self) -> str: ...

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = ...,
        schema: Mapping[str, Any] | None = ...,
    ) -> Completion: ...


@dataclass(frozen=True)
class Command:
    """A program as a teacher, run once per request. It reads a chat request (JSON of OpenAI's API) from its standard
    input and writes {"text": "..."} or, to refuse the request, {"rejected": "why"}."""

    command: str
    name: str
    seconds: float = 300.0

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingParams = GREEDY,
        schema: Mapping[str, Any] | None = None,
    ) -> Completion:
        body = json.dumps({"model": self.name} | chat_body(messages, sampling, schema))
        program = shlex.split(self.command)
        try:
            result = subprocess.run(
                program, input=body.encode(), capture_output=True, timeout=self.seconds, check=False
            )
        except FileNotFoundError:
            raise ValueError(
                f"the teacher {program[0]!r} is not on this system; check its path"
            ) from None
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"the teacher {program[0]!r} took more than {self.seconds:g} s for one answer"
            ) from None
        if result.returncode:
            message = result.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise ValueError(
                f"the teacher {program[0]!r} failed with code {result.returncode}: {message[-1][:160]}"
            )
        try:
            answer = json.loads(result.stdout)
            if "rejected" in answer:
                raise RequestRejected(str(answer["rejected"]))
            return Completion(
                str(answer["text"]), finish_reason=answer.get("finish_reason", "stop")
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f'the teacher {program[0]!r} should write {{"text": "..."}}, '
                f"found {result.stdout[:120].decode(errors='replace')!r}"
            ) from None
