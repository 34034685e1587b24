"""The marks of a conversation: which control tokens and texts a model's chat template puts around messages.

>>> marks = recognized(controls, template)
>>> marks.header, marks.end
(('<|im_start|>', '{role}\\n'), ('<|im_end|>', '\\n'))

Three forms are known, by the control tokens of the vocabulary and the text of the template; no template is run.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from polyphi.processing.vocabulary import END, END_OF_TEXT, REQUIRED


@dataclass(frozen=True)
class ConversationMarks:
    """What is around messages: control tokens and texts, in order.

    `begin`: before the first message. `header`: before the content of one, where `{role}` stands for its role, or for
    what `roles` has for it. `end`: after it. `close`: after the last one of a complete conversation. `tools`: around
    the schemas of tools on a system message. `document_end`: after a document. `default_system`: the content of a
    system message that precedes conversations without one. `trims`: without white space around the contents.
    """

    name: str
    controls: tuple[str, ...]
    header: tuple[str, ...]
    end: tuple[str, ...]
    tools: tuple[str, str]
    begin: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    document_end: str = END_OF_TEXT
    roles: Mapping[str, str] = field(default_factory=dict)
    default_system: str | None = None
    trims: bool = False


PHI4 = ConversationMarks(
    "Phi-4", REQUIRED, ("<|{role}|>",), (END,), ("<|tool|>", "<|/tool|>"), close=(END_OF_TEXT,)
)
CHATML = ConversationMarks(
    "ChatML",
    ("<|im_start|>", "<|im_end|>", END_OF_TEXT),
    ("<|im_start|>", "{role}\n"),
    ("<|im_end|>", "\n"),
    ("\n\n# Tools\n\n<tools>\n", "\n</tools>"),
    roles={"tool_response": "tool"},
)
LLAMA3 = ConversationMarks(
    "Llama 3",
    (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ),
    ("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
    ("<|eot_id|>",),
    ("\n\n# Tools\n\n<tools>\n", "\n</tools>"),
    begin=("<|begin_of_text|>",),
    document_end="<|end_of_text|>",
    roles={"tool": "ipython", "tool_response": "ipython"},
    trims=True,
)
FORMS = (PHI4, CHATML, LLAMA3)

_STRINGS = re.compile(r"'[^']*'|\"[^\"]*\"")
_CHATML = re.compile(
    re.escape("{%formessageinmessages%}")
    + "(?:"
    + re.escape(r"{%ifloop.firstandmessages[0]['role']!='system'%}{{'<|im_start|>system\n")
    + r"(?P<system>[^'{}<>|\\]*)"
    + re.escape(r"<|im_end|>\n'}}{%endif%}")
    + ")?"
    + re.escape(
        r"{{'<|im_start|>'+message['role']+'\n'+message['content']+'<|im_end|>'+'\n'}}{%endfor%}"
        r"{%ifadd_generation_prompt%}{{'<|im_start|>assistant\n'}}{%endif%}"
    )
)
"""The templates of SmolLM2 (with the text of a system message for conversations without one) and of transformers."""
_LLAMA3 = re.compile(
    re.escape(
        r"{%setloop_messages=messages%}{%formessageinloop_messages%}"
        r"{%setcontent='<|start_header_id|>'+message['role']+'<|end_header_id|>\n\n'+message['content']|trim+"
        r"'<|eot_id|>'%}{%ifloop.index0==0%}{%setcontent=bos_token+content%}{%endif%}{{content}}{%endfor%}"
        r"{%ifadd_generation_prompt%}{{'<|start_header_id|>assistant<|end_header_id|>\n\n'}}{%endif%}"
    )
)
_TEMPLATES = {CHATML.name: _CHATML, LLAMA3.name: _LLAMA3}


def recognized(controls: Collection[str], template: str) -> ConversationMarks:
    """The marks of a vocabulary with these control tokens. `template`: the text of its chat template, "" for none.
    Raises ValueError where the control tokens, or the template of another form than Phi-4's, are unknown."""
    marks = next((form for form in FORMS if set(form.controls) <= set(controls)), None)
    if marks is None:
        missing = "; ".join(
            f"{form.name} lacks {', '.join(t for t in form.controls if t not in controls)}"
            for form in FORMS
        )
        raise ValueError(
            f"expected the control tokens of Phi-4, ChatML or Llama 3 in tokenizer.json: {missing}"
        )
    if marks is PHI4 or not template:
        return marks
    if (match := _TEMPLATES[marks.name].fullmatch(_normalized(template))) is None:
        raise ValueError(
            f"the chat template is none of those of {marks.name} that are known (messages one after the other, as in "
            f"SmolLM2's and Llama 3's): {template!r:.200}"
        )
    return replace(marks, default_system=match.groupdict().get("system"))


def _normalized(template: str) -> str:
    """A template without white space outside of its strings, with `\\n` for line ends in them."""
    code = _STRINGS.split(template.strip())
    strings = [text.replace("\n", "\\n") for text in _STRINGS.findall(template.strip())]
    code = [re.sub(r"(?<={[%{])-|-(?=[%}]})|\s", "", part) for part in code]
    return "".join(part + text for part, text in zip(code, [*strings, ""], strict=True))
