"""What the workflow remembers, what it is given, and what it gives back."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ..agents.base import AgentConfig
from ..agents.model_classifier import ModelClassifier


class Decision(TypedDict):
    """What a human answers to a paused workflow."""

    resolution: str
    resolved_by: str


class State(TypedDict, total=False):
    """One run, for one message of a customer.

    Kept in the checkpointer while the run is paused, possibly over a release of the service: plain
    JSON values only, and a name that is used once keeps its meaning.
    """

    message: str
    message_id: int
    conversation_id: int
    thread_id: str
    intent: str
    hand_off: bool
    product_type: str | None
    decided_by: str
    agent: str
    draft: str
    sources: list[str]
    escalation_id: int
    escalation_is_ours: bool
    decision: Decision
    reply: str
    compliance: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tools:
    """What the workflow works with; never stored."""

    config: AgentConfig
    sessions: async_sessionmaker[AsyncSession]
    model: ModelClassifier | None


class Result(TypedDict):
    """What became of a message.

    `agent` is who answered: `"knowledge_agent"`, `"human_agent"`, or `"system"` while a human is
    awaited, with `escalation_id` in the metadata.
    """

    status: Literal["completed", "paused"]
    agent: str
    content: str
    metadata: dict[str, Any]


class Recovered(NamedTuple):
    """What became of the messages that were taken up: the answers, and the ids of those without."""

    results: list[Result]
    failed: list[int]
