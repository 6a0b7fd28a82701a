"""Hands a conversation to a human, and takes the human's answer."""

from collections.abc import Mapping
from typing import Any

from ..models import Escalation
from ..services.conversations import ConversationService
from .base import AgentConfig, AgentResponse
from .compliance_checker import ComplianceCheckerAgent
from .triage_rules import default_triage_rules


class NonCompliantReply(ValueError):
    """What a human wants to send breaks rules; `issues` says which and where."""

    def __init__(self, issues: list[str]) -> None:
        super().__init__("The reply breaks a rule: " + "; ".join(issues))
        self.issues = issues


class HumanAgent:
    """Each of its actions is one transaction, committed when it returns."""

    def __init__(self, config: AgentConfig, conversation_service: ConversationService) -> None:
        self.config = config
        self.conversations = conversation_service

    async def process(
        self, payload: Mapping[str, Any], context: Mapping[str, Any] | None = None
    ) -> AgentResponse:
        """Open an escalation, with its conversation if need be.

        The payload holds `conversation_id`, or `customer_id` for a new conversation, or both; a
        `reason`; and from the graph the `message_id` and `thread_id` that wait for the answer. A
        conversation that waits already keeps its escalation.

        Returns:
            What to tell the customer as content; as metadata the escalation.

        Raises:
            KeyError: the payload names neither a conversation nor a customer.
            NotFound: there is no such conversation or customer.
        """
        conversation_id = payload.get("conversation_id")
        if conversation_id is None or "customer_id" in payload:
            conversation = await self.conversations.open_conversation(
                payload["customer_id"], conversation_id
            )
            conversation_id = conversation.id
        escalation = await self.conversations.open_escalation(
            conversation_id,
            payload.get("reason", "human"),
            message_id=payload.get("message_id"),
            thread_id=payload.get("thread_id"),
        )
        await self.conversations.db.commit()
        return _response(default_triage_rules().acknowledgement_of(escalation.reason), escalation)

    async def assign(self, escalation_id: int, assignee: str) -> AgentResponse:
        """Say who takes care of an escalation.

        Raises:
            NotFound: there is no such escalation.
            Conflict: somebody else does, or it is resolved.
        """
        escalation = await self.conversations.assign_escalation(escalation_id, assignee)
        await self.conversations.db.commit()
        return _response(f"Assigned to {assignee}.", escalation)

    async def resolve(self, escalation_id: int, resolution: str, resolved_by: str) -> AgentResponse:
        """Answer the customer in the name of `resolved_by`.

        A graph that is paused for the escalation stays where it is: it has nothing left to do.
        `AgentCoordinator.resolve_escalation` resumes it.

        Raises:
            NonCompliantReply: the answer breaks a rule; nothing is changed.
            NotFound: there is no such escalation.
            Conflict: it is resolved, somebody is resolving it, or it is assigned to another.
        """
        checked = await ComplianceCheckerAgent(self.config).process({"content": resolution})
        if not checked.metadata["is_compliant"]:
            raise NonCompliantReply(checked.metadata["issues"])
        escalation = await self.conversations.claim_escalation(escalation_id, resolved_by)
        await self.conversations.resolve_escalation(
            escalation, resolution=resolution, resolved_by=resolved_by, reply=checked.content
        )
        await self.conversations.db.commit()
        return _response(checked.content, escalation)


def _response(content: str, escalation: Escalation) -> AgentResponse:
    return AgentResponse(
        content=content,
        metadata={
            "escalation_id": escalation.id,
            "conversation_id": escalation.conversation_id,
            "status": escalation.status,
            "reason": escalation.reason,
            "assigned_to": escalation.assigned_to,
            "thread_id": escalation.thread_id,
        },
    )
