"""Response formats: every spelling that clients have for the required form of an answer -> one `Grammar`.

OpenAI's is `response_format`. vLLM's are `structured_outputs` and, in older versions, `guided_json` and so on; SGLang's
`regex`, `ebnf` and `json_schema`; llama.cpp's `grammar` and `json_schema`. A request may use one of them.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from polyphi.decoding.forms import JSON_OBJECT, json_grammar
from polyphi.serve.http.errors import ApiError
from polyphi.serve.http.fields import (
    BOOLEAN,
    FAST,
    OBJECT,
    STRING,
    AnyObject,
    Fields,
    Refused,
    json_type,
    one_of,
    refuse,
)
from polyphi.serve.http.refusals import NO_TAGS
from polyphi.types.sampling import Grammar

Schema = Annotated[
    Annotated[AnyObject, Tag(OBJECT)] | Annotated[bool, Tag(BOOLEAN)],
    one_of(json_type, "a JSON schema: an object, true or false"),
]
SchemaOrText = Annotated[
    Annotated[AnyObject, Tag(OBJECT)] | Annotated[bool, Tag(BOOLEAN)] | Annotated[str, Tag(STRING)],
    one_of(json_type, "a JSON schema: an object, its JSON as a text, true or false"),
]
Choices = Annotated[list[str], Field(min_length=1), FAST]
MAX_CHOICES = 100_000
"""Characters of all choices: more don't fit in a regular expression."""
METACHARACTERS = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")


class JsonSchema(Fields):
    name: str | None = Field(default=None, max_length=256)
    description: str | None = None
    schema_: Schema = Field(alias="schema", default=True)
    strict: bool | None = None


class ResponseFormat(Fields):
    refused: ClassVar[Refused] = {"structures": (), "triggers": ()}

    type: Annotated[
        Literal["text", "json_object", "json_schema", "regex", "grammar"],
        refuse("structural_tag", NO_TAGS),
    ]
    json_schema: JsonSchema | None = None
    schema_: Schema | None = Field(alias="schema", default=None)
    regex: str | None = None
    pattern: str | None = None
    grammar: str | None = None

    def grammar_of(self) -> Grammar | None:
        """The grammar of this response format; None for free text. Raises ApiError where the value that the type needs
        is missing."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return JSON_OBJECT if self.schema_ is None else json_grammar(self.schema_)
        if self.type == "json_schema":
            return json_grammar(self._value("json_schema", self.json_schema).schema_)
        if self.type == "regex":
            pattern = self.pattern if self.regex is None else self.regex
            return Grammar("regex", self._value("regex", pattern))
        return Grammar("ebnf", self._value("grammar", self.grammar))

    def _value(self, field: str, value: Any) -> Any:
        if value is None:
            raise ApiError(400, f"expected {field}, found none", param=f"response_format.{field}")
        return value


class StructuredOutputs(Fields):
    """vLLM's parameters of the same name."""

    ignored = frozenset({"disable_fallback"})
    refused: ClassVar[Refused] = {
        "structural_tag": (),
        "whitespace_pattern": (),
        "disable_any_whitespace": (False,),
        "disable_additional_properties": (False,),
    }

    json_: SchemaOrText | None = Field(alias="json", default=None)
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class FormatFields(Fields):
    """The fields of a request that determine the form of its answer."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None
    json_schema: SchemaOrText | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar_: str | None = Field(alias="grammar", default=None)

    def grammar(self) -> Grammar | None:
        """The required form of the answer, None for free text. Raises ApiError for several, and for missing values."""
        grammars = list(self._grammars())
        if len(grammars) > 1:
            names = " and ".join(name for name, _ in grammars)
            raise ApiError(
                400, f"expected one form of the answer, found {names}", param=grammars[1][0]
            )
        return grammars[0][1] if grammars else None

    @property
    def format_field(self) -> str:
        """The path of the field that determines the form, for errors."""
        return next((name for name, _ in self._grammars()), "response_format")

    def _grammars(self) -> Iterator[tuple[str, Grammar]]:
        if self.response_format is not None:
            grammar = self.response_format.grammar_of()
            if grammar is not None:
                yield "response_format", grammar
        outputs = self.structured_outputs or StructuredOutputs()
        if outputs.json_object:
            yield "structured_outputs.json_object", JSON_OBJECT
        for name, schema in (
            ("structured_outputs.json", outputs.json_),
            ("guided_json", self.guided_json),
            ("json_schema", self.json_schema),
        ):
            if schema is not None:
                yield name, json_grammar(schema)
        for name, pattern in (
            ("structured_outputs.regex", outputs.regex),
            ("guided_regex", self.guided_regex),
            ("regex", self.regex),
        ):
            if pattern is not None:
                yield name, Grammar("regex", pattern)
        for name, choice in (
            ("structured_outputs.choice", outputs.choice),
            ("guided_choice", self.guided_choice),
        ):
            if choice is not None:
                yield name, choices(choice, name)
        for name, text in (
            ("structured_outputs.grammar", outputs.grammar),
            ("guided_grammar", self.guided_grammar),
            ("ebnf", self.ebnf),
            ("grammar", self.grammar_),
        ):
            if text is not None:
                yield name, Grammar("ebnf", text)


def choices(texts: list[str], field: str) -> Grammar:
    """The grammar of answers that are one of these texts. Raises ApiError for too long ones; `field` has them."""
    if (characters := sum(map(len, texts))) > MAX_CHOICES:
        raise ApiError(
            400,
            f"{field}: expected at most {MAX_CHOICES:,} characters, found {characters:,}",
            param=field,
        )
    return Grammar("regex", "|".join(METACHARACTERS.sub(r"\\\g<0>", text) for text in texts))
