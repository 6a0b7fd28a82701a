"""What every agent takes and gives back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Limits that all agents share.

    Attributes:
        max_characters: the longest text that an agent accepts.
        knowledge_results: how many passages of the knowledge base an answer may draw on.
    """

    max_characters: int = 20_000
    knowledge_results: int = 3


@dataclass(frozen=True, slots=True)
class AgentResponse:
    """What an agent answers: `content` for the reader, `metadata` for the program."""

    content: str
    metadata: dict[str, Any] = field(default_factory=dict)


class Agent(Protocol):
    """Anything that turns a payload into a response."""

    async def process(
        self, payload: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> AgentResponse:
        """Answer `payload`; `context` is what the caller knows besides."""
        ...


def content_of(payload: Mapping[str, Any], config: AgentConfig) -> str:
    """The text under `"content"` of a payload.

    Raises:
        ValueError: there is none, it isn't text, or it is too long.
    """
    content = payload.get("content")
    if not isinstance(content, str):
        raise ValueError('the payload needs a text under "content"')
    if len(content) > config.max_characters:
        raise ValueError(f"the text is longer than {config.max_characters} characters")
    return content
