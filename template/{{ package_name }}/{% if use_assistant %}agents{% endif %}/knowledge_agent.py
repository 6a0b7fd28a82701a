"""Answers from the knowledge base, in its own words: nothing is made up."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ..services import knowledge
from .base import AgentConfig, AgentResponse, content_of

NOTHING_FOUND = (
    "I'm sorry, I have no answer to that. If you would like a colleague to help, just say "
    '"speak to a person".'
)


class KnowledgeAgent:
    """Finds the passages of the knowledge base that answer a question."""

    def __init__(self, config: AgentConfig, db: AsyncSession) -> None:
        self.config = config
        self.db = db

    async def process(
        self, payload: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> AgentResponse:
        """Answer the question in `payload["content"]`.

        Returns:
            The passages as content; as metadata `sources`, where they are from.

        Raises:
            ValueError: the payload has no text, or one that is too long.
        """
        question = content_of(payload, self.config)
        found = await knowledge.search(self.db, question, self.config.knowledge_results)
        return AgentResponse(
            content="\n\n".join(hit.content for hit in found) or NOTHING_FOUND,
            metadata={"sources": [hit.source for hit in found]},
        )
