"""The marks of a conversation: which control tokens and texts a model's chat template puts around messages.

>>> marks = recognized(controls, template)
>>> marks.header, marks.end
(('<|im_start|>', '{role}\\n'), ('<|im_end|>', '\\n'))

The known forms are recognized by the control tokens of the vocabulary and the text of the template; no template is run.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from polyphi.processing.vocabulary import END, END_OF_TEXT, REQUIRED
from polyphi.types.tools import PHI_CALLS, SINGLE_CALL, TAGGED_CALLS, CallForm


@dataclass(frozen=True)
class ConversationMarks:
    """What is around messages: control tokens and texts, in order.

    `begin`: before the first message. `header`: before the content of one, where `{role}` stands for its role, or for
    what `roles` has for it. `end`: after it. `close`: after the last one of a complete conversation. `tools`: around
    the schemas of tools on a system message. `calls`: how the model writes calls. `document_end`: after a document.
    `default_system`: the content of a system message that precedes conversations without one. `trims`: without white
    space around the contents.

    `preface`: before the content of the first system message, which every conversation then has. With tools
    `tools_preface` is before that, their schemas are in the first user's message, what they return is quoted as JSON.
    """

    name: str
    controls: tuple[str, ...]
    header: tuple[str, ...]
    end: tuple[str, ...]
    tools: tuple[str, str]
    calls: CallForm
    begin: tuple[str, ...] = ()
    close: tuple[str, ...] = ()
    document_end: str = END_OF_TEXT
    roles: Mapping[str, str] = field(default_factory=dict)
    default_system: str | None = None
    trims: bool = False
    preface: str = ""
    tools_preface: str = ""


PHI4 = ConversationMarks(
    "Phi-4",
    REQUIRED,
    ("<|{role}|>",),
    (END,),
    ("<|tool|>", "<|/tool|>"),
    PHI_CALLS,
    close=(END_OF_TEXT,),
)
# The instructions that SmolLM2's authors give with tools.
_TOOLS = (
    "\n\nYou are an expert in composing functions. You are given a question and a set of possible functions. \n"
    "Based on the question, you will need to make one or more function/tool calls to achieve the purpose. \n"
    "If none of the functions can be used, point it out and refuse to answer. \n"
    "If the given question lacks the parameters required by the function, also point it out.\n\n"
    "You have access to the following tools:\n<tools>",
    "</tools>\n\nThe output MUST strictly adhere to the following format, and NO other text MUST be included.\n"
    "The example format is as follows. Please make sure the parameter type is correct. If no function call is needed, "
    "please make the tool calls an empty list '[]'.\n<tool_call>[\n"
    '{"name": "func_name1", "arguments": {"argument1": "value1", "argument2": "value2"}},\n'
    "... (more tool calls as required)\n]</tool_call>",
)
CHATML = ConversationMarks(
    "ChatML",
    ("<|im_start|>", "<|im_end|>", END_OF_TEXT),
    ("<|im_start|>", "{role}\n"),
    ("<|im_end|>", "\n"),
    _TOOLS,
    TAGGED_CALLS,
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
    _TOOLS,
    TAGGED_CALLS,
    begin=("<|begin_of_text|>",),
    document_end="<|end_of_text|>",
    roles={"tool": "ipython", "tool_response": "ipython"},
    trims=True,
)
FORMS = (PHI4, CHATML, LLAMA3)
# Llama 3.1 and 3.2. The date is the one that the template has where nothing gives today's: the same prompt every day.
LLAMA3_TOOLS = replace(
    LLAMA3,
    tools=(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        "best answers the given prompt.\n\nRespond in the format "
        '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n',
        "",
    ),
    calls=SINGLE_CALL,
    default_system="",
    preface="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
    tools_preface="Environment: ipython\n",
)
_LLAMA3_TOOLS = (
    "d9fbea1f85257bf92ec50a79ebab338ce8cc375bd67e9d509ffb357cde9c8c6f",
    "fcef76b7057a4f9d5f6b724bf24275db3a9253434c192521a3254a45cf30c573",
)
"""SHA-256 of the templates of Llama 3.1 and Llama 3.2, without white space outside of strings."""

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
    text = _normalized(template)
    if marks is LLAMA3 and hashlib.sha256(text.encode()).hexdigest() in _LLAMA3_TOOLS:
        return LLAMA3_TOOLS
    if (match := _TEMPLATES[marks.name].fullmatch(text)) is None:
        raise ValueError(
            f"the chat template is none of those of {marks.name} that are known (SmolLM2's, Llama 3's to 3.2's, and "
            f"messages one after the other): {template!r:.200}"
        )
    return replace(marks, default_system=match.groupdict().get("system"))


def call_form(marks: ConversationMarks, controls: Collection[str]) -> CallForm:
    """How a model with these control tokens writes calls: without Phi-4's two marks a bare list."""
    form = marks.calls
    lacks_marks = form == PHI_CALLS and not {form.before, form.after} <= set(controls)
    return CallForm() if lacks_marks else form


def unknown_controls(marks: ConversationMarks, controls: Collection[str]) -> list[str]:
    """Control tokens of a Phi-4 vocabulary that don't have the form of Phi-4's (`<|...|>`): those of a fine-tune."""
    if marks is not PHI4:
        return []
    return [token for token in controls if not re.fullmatch(r"</?\|.+\|>", token)]


def _normalized(template: str) -> str:
    """A template without white space outside of its strings, with `\\n` for line ends in them."""
    code = _STRINGS.split(template.strip())
    strings = [text.replace("\n", "\\n") for text in _STRINGS.findall(template.strip())]
    code = [re.sub(r"(?<={[%{])-|-(?=[%}]})|\s", "", part) for part in code]
    return "".join(part + text for part, text in zip(code, [*strings, ""], strict=True))
