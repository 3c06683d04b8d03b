"""The requests that the server reads: chat and plain completions, responses, tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from gossamer.server.fields import Positive, Request, label, only

StopString = Annotated[str, Field(min_length=1, max_length=1024)]
Stop = StopString | Annotated[list[StopString], Field(max_length=16)] | None
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
"""A token as the name of a member: names are strings in JSON."""
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_NO_STORE = "nothing is stored"


class Sparse(Request):
    """What one request's attention may skip."""

    token_budget: Annotated[
        int | None, Field(ge=0, le=2**31 - 1, description="tokens to read while decoding; 0: all")
    ] = None


class Drawn(Request):
    """How tokens are chosen, alike for all requests that generate."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    top_k: Annotated[Positive | None, Field(description="extension")] = None
    min_p: Annotated[float | None, Field(ge=0, le=1, description="extension")] = None
    repetition_penalty: Annotated[float | None, Field(ge=0.01, le=100, description="extension")] = None
    ignore_eos: Annotated[bool | None, Field(description="extension")] = None
    stop_token_ids: Annotated[list[Token] | None, Field(max_length=1024, description="extension")] = None
    sparsity: Annotated[
        Sparse | None, Field(description="extension: {token_budget: tokens to read while decoding, 0 for all}")
    ] = None
    user: label() = None  # type: ignore[valid-type]


class StreamOptions(Request):
    include_usage: bool | None = None
    include_obfuscation: only(False, why="no padding is added to streams") = None  # type: ignore[valid-type]


class Generated(Drawn):
    """What chat and plain completions share."""

    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenName, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _streams(self) -> Generated:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true")
        return self


class Function(Request):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Request):
    type: Literal["function"]
    function: Function


class Named(Request):
    name: str


class NamedTool(Request):
    type: Literal["function"]
    function: Named


class JsonSchema(Request):
    name: Name
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class Format(Request):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Format:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema comes with type json_schema, and only with it")
        return self


def _object(required: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **more}, "required": list(required)}


_STRING = {"type": "string"}
_STRING = {"type": "string"}
_TEXT_PART = _object({"type": {"enum": ["text", "input_text", "output_text"]}, "text": _STRING})
_FUNCTION = _object({"name": _STRING, "arguments": _STRING})
_CALL = _object({"type": {"const": "function"}, "function": _FUNCTION}, id=_STRING)
_CONTENT = {"anyOf": [_STRING, {"type": "array", "items": _TEXT_PART}, {"type": "null"}]}
_SAID = {"anyOf": _CONTENT["anyOf"][:2]}
Content = Annotated[str | list[dict[str, Any]] | None, WithJsonSchema(_CONTENT)]
Calls = Annotated[list[dict[str, Any]], WithJsonSchema({"type": "array", "items": _CALL})]
_ROLES = ["system", "developer", "user", "assistant"]
_ITEMS = [
    _object({"role": {"enum": _ROLES}, "content": _SAID}, type={"const": "message"}),
    _object({"type": {"const": "function_call"}, "call_id": _STRING, "name": _STRING, "arguments": _STRING}),
    _object({"type": {"const": "function_call_output"}, "call_id": _STRING, "output": _SAID}),
    _object({"type": {"const": "reasoning"}}),
]
Item = Annotated[dict[str, Any], WithJsonSchema({"anyOf": _ITEMS})]


class Message(Request):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: label() = None  # type: ignore[valid-type]
    tool_calls: Calls | None = None
    tool_call_id: str | None = None
    refusal: only(why="a refusal is no text of the conversation") = None  # type: ignore[valid-type]
    reasoning_content: label() = None  # type: ignore[valid-type]
    annotations: label() = None  # type: ignore[valid-type]
    audio: only(why="this server makes text") = None  # type: ignore[valid-type]
    function_call: only(why="deprecated; use tool_calls") = None  # type: ignore[valid-type]

    @field_validator("content")
    @classmethod
    def _text(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = []
        for part in value:
            kind = part.get("type")
            if kind not in ("text", "input_text", "output_text"):
                raise ValueError(f"a part of type {kind!r:.40}, which this model cannot read; expected text")
            if not isinstance(part.get("text"), str):
                raise ValueError("a part of type text has no text")
            texts.append(part["text"])
        return "\n".join(texts)

    @model_validator(mode="after")
    def _whole(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise ValueError(f"content is missing in a message of the {self.role}")
        if self.role == "tool" and self.tool_call_id is None:
            raise ValueError("tool_call_id is missing in a message of a tool")
        return self


class Chat(Generated):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Positive | None = None
    max_tokens: Annotated[Positive | None, Field(description="the older name of max_completion_tokens")] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=128)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Annotated[bool | None, Field(description="one call comes at a time")] = None
    response_format: Format | None = None
    metadata: label() = None  # type: ignore[valid-type]
    prompt_cache_key: label() = None  # type: ignore[valid-type]
    safety_identifier: label() = None  # type: ignore[valid-type]
    service_tier: only("auto", "default", why="there is one tier") = None  # type: ignore[valid-type]
    store: only(False, why=_NO_STORE) = None  # type: ignore[valid-type]
    modalities: only(["text"], why="this server makes text") = None  # type: ignore[valid-type]
    audio: only(why="this server makes text") = None  # type: ignore[valid-type]
    prediction: only(why="outputs are not predicted") = None  # type: ignore[valid-type]
    prompt_cache_retention: only(why="prefixes are kept while there is room") = None  # type: ignore[valid-type]
    reasoning_effort: only("none", why="this model does not reason apart") = None  # type: ignore[valid-type]
    verbosity: only("medium", why="say it in the messages") = None  # type: ignore[valid-type]
    web_search_options: only(why="this server does not search") = None  # type: ignore[valid-type]
    functions: only(why="deprecated; use tools") = None  # type: ignore[valid-type]
    function_call: only(why="deprecated; use tool_choice") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _together(self) -> Chat:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is for logprobs=true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice is for requests with tools")
        if isinstance(self.tool_choice, NamedTool):
            names = [tool.function.name for tool in self.tools or []]
            if self.tool_choice.function.name not in names:
                raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, expected one of {names}")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class Completions(Generated):
    """POST /v1/completions"""

    prompt: str | list[str] | list[Token] | list[list[Token]]
    max_tokens: Positive | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Annotated[bool | None, Field(description="without logprobs")] = None
    suffix: only(why="texts are continued, not filled in") = None  # type: ignore[valid-type]
    best_of: only(1, why="every text that is made is returned; use n") = None  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _together(self) -> Completions:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo is for requests without logprobs: those of the prompt are not computed")
        return self

    @property
    def prompts(self) -> list[Any]:
        """Each prompt, a text or tokens."""
        given = self.prompt
        several = isinstance(given, list) and (not given or not isinstance(given[0], int))
        return list(given) if several else [given]


class Tokenize(Request):
    """POST /tokenize"""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    add_special_tokens: Annotated[bool, Field(description="of a prompt")] = True

    @model_validator(mode="after")
    def _one(self) -> Tokenize:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt or messages, and not both, must be given")
        return self


class TextFormat(Request):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class TextSettings(Request):
    format: TextFormat | None = None
    verbosity: only("medium", why="say it in the messages") = None  # type: ignore[valid-type]


class FlatTool(Request):
    """A tool of /v1/responses, whose function is not nested."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatNamedTool(Request):
    type: Literal["function"]
    name: str


class Responses(Drawn):
    """POST /v1/responses"""

    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    text: TextSettings | None = None
    tools: Annotated[list[FlatTool] | None, Field(max_length=128)] = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: Annotated[bool | None, Field(description="one call comes at a time")] = None
    metadata: Annotated[dict[str, str] | None, Field(description="comes back with the answer")] = None
    prompt_cache_key: label() = None  # type: ignore[valid-type]
    safety_identifier: label() = None  # type: ignore[valid-type]
    store: only(False, True, why=_NO_STORE) = None  # type: ignore[valid-type]
    truncation: only("disabled", why="prompts are not cut") = None  # type: ignore[valid-type]
    service_tier: only("auto", "default", why="there is one tier") = None  # type: ignore[valid-type]
    background: only(False, why="answers come with the request") = None  # type: ignore[valid-type]
    conversation: only(why=_NO_STORE) = None  # type: ignore[valid-type]
    previous_response_id: only(why=f"{_NO_STORE}; send the items again") = None  # type: ignore[valid-type]
    include: only([], ["reasoning.encrypted_content"], why="nothing further can be included") = None  # type: ignore[valid-type]
    max_tool_calls: only(why="this server calls no tools itself") = None  # type: ignore[valid-type]
    prompt: only(why="there are no stored prompts") = None  # type: ignore[valid-type]
    prompt_cache_retention: only(why="prefixes are kept while there is room") = None  # type: ignore[valid-type]
    reasoning: Annotated[dict[str, Any] | None, Field(description="only {effort: none, summary: null}")] = None
    stream_options: only(why="events carry their usage") = None  # type: ignore[valid-type]
    top_logprobs: only(0, why="use /v1/chat/completions for log-probabilities") = None  # type: ignore[valid-type]

    @field_validator("reasoning")
    @classmethod
    def _no_reasoning(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, each in (value or {}).items():
            if each is not None and (name, each) != ("effort", "none"):
                raise ValueError(f"{name} is {each!r:.40}: this model does not reason apart")
        return value
