"""Teachers: models that answer synthesis requests, behind an endpoint or a command."""

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polyphi.messages import Completion, Message, SamplingParams
from polyphi.services.endpoint import Rejected, chat_body

GREEDY = SamplingParams()


class Teacher(Protocol):
    """Who answers. An `Endpoint` is one, and a `Command`. `name` tells answers of one from those of another; `Rejected`
    is raised for a request that it won't answer, any other error for what would befall all of them."""

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
    """Any program as a teacher, run once for each request. It reads a chat request as OpenAI's API has it (JSON) from
    its standard input and writes {"text": "..."} or, where it won't answer, {"rejected": "why"}."""

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
            done = subprocess.run(
                program, input=body.encode(), capture_output=True, timeout=self.seconds, check=False
            )
        except FileNotFoundError:
            raise ValueError(f"the teacher {program[0]!r} is not on this system") from None
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"the teacher {program[0]!r} took more than {self.seconds:g} s for one answer"
            ) from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise ValueError(
                f"the teacher {program[0]!r} failed with code {done.returncode}: {said[-1][:160]}"
            )
        try:
            answer = json.loads(done.stdout)
            if "rejected" in answer:
                raise Rejected(str(answer["rejected"]))
            return Completion(
                str(answer["text"]), finish_reason=answer.get("finish_reason", "stop")
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f'the teacher {program[0]!r} should write {{"text": "..."}}, '
                f"found {done.stdout[:120].decode(errors='replace')!r}"
            ) from None
