"""Takes a customer's message through the workflow, and a human's answer back into it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from ..agents.base import AgentConfig
from ..agents.compliance_checker import ComplianceCheckerAgent
from ..agents.human_agent import NonCompliantReply
from ..agents.model_classifier import ModelClassifier
from ..agents.triage_rules import default_triage_rules
from ..config import settings
from ..database import AsyncSessionLocal
from ..exceptions import Unavailable
from ..models import Escalation, Message
from ..models.message import Role
from ..services.conversations import Conflict, ConversationService, InProgress
from .state import Decision, Recovered, Result, State, Tools

if TYPE_CHECKING:
    from .checkpointer import Pool
    from .runs import Runs

logger = structlog.get_logger(__name__)

# So long a message without an answer may be in work; after that its process has died.
IN_WORK = timedelta(minutes=1)


class AgentCoordinator:
    """The support desk.

    Without arguments it holds nothing open between two calls, so nobody has to close it, and it
    works in any event loop. With a `pool_size` it keeps connections for the checkpointer from the
    first call until `aclose()`, as the service's lifespan does.
    """

    def __init__(
        self,
        config: AgentConfig | None = None,
        *,
        sessions: async_sessionmaker[AsyncSession] | None = None,
        pool_size: int = 0,
    ) -> None:
        model = settings.llm_model
        self._tools = Tools(
            config=config or AgentConfig(),
            sessions=sessions or AsyncSessionLocal,
            model=ModelClassifier(model, settings.llm_timeout) if model else None,
        )
        self._pool_size = pool_size
        self._pool: Pool | None = None

    async def warm_up(self) -> None:
        """Import LangGraph, so that the first message need not wait for it."""
        await asyncio.to_thread(_import_langgraph)
        logger.info("the assistant is warm")

    async def aclose(self) -> None:
        """Close the pool, if one was opened."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.close()

    async def process_message(
        self,
        *,
        message: str,
        customer_id: int,
        conversation_id: int | None = None,
        request_key: str | None = None,
    ) -> Result:
        """Answer a message, or pause until a human does.

        A conversation that does not exist is made. While it waits for a human, further messages
        are recorded for them and not answered by the machine. A message that is sent again because
        the process that had it died is taken up where that stopped, and not recorded twice.

        Args:
            request_key: what its sender knows the message by. Sent again with the same key in the
                same conversation, it is recorded once and gets the answer that it got.

        Raises:
            KeyReused: another message was sent with this key.
            InProgress: the same message came a moment ago, and is being answered.
            ValueError: the message is empty, too long, or nothing that Postgres can store.
            NotFound: there is no such customer, or the conversation is another customer's.
            Unavailable: the database can't be reached.
        """
        if not message.strip() or len(message) > self._tools.config.max_characters:
            raise ValueError("the message is empty or too long")
        if "\0" in message:
            raise ValueError("the message holds a NUL character")
        async with self._tools.sessions() as session, session.begin():
            service = ConversationService(session)
            conversation = await service.open_conversation(customer_id, conversation_id)
            waiting = await service.unresolved_escalation(conversation.id)
            if request_key is None:
                asked = await service.repeated(conversation.id, message)
                asked = asked or await service.add_message(conversation.id, message)
            else:
                asked, new = await service.add_message_once(conversation.id, message, request_key)
                if not new and (known := await _known(service, asked)):
                    return known
        if waiting is not None:
            return _paused(asked, waiting.id, waiting.reason)
        return await self._answer(asked)

    async def recover(self, older_than: timedelta = timedelta(minutes=5)) -> Recovered:
        """Take up the messages that nobody answered, because the process that had them died.

        Each on its own: one that can't be answered is logged, and does not keep those behind it from
        it. Checkpoints of those that were answered, and that it died before it deleted, are deleted.

        Args:
            older_than: how old they must be: younger ones may be in work.

        Raises:
            Unavailable: the database can't be reached; what was taken up before stays.
        """
        async with self._tools.sessions() as session:
            until = datetime.now(UTC) - older_than
            messages = await ConversationService(session).unanswered(until)
        results, failed = [], []
        for message in messages:
            try:
                results.append(await self._answer(message))
            except Exception:
                logger.exception("message not taken up", message_id=message.id)
                failed.append(message.id)
        await self._forget_answered()
        return Recovered(results, failed)

    async def _answer(self, asked: Message) -> Result:
        thread_id = f"message-{asked.id}"
        async with self._runs() as runs:
            state = await runs.start(
                State(
                    message=asked.content,
                    message_id=asked.id,
                    conversation_id=asked.conversation_id,
                    thread_id=thread_id,
                )
            )
        if "reply" not in state:
            if not state["escalation_is_ours"]:
                await self._forget(thread_id)  # it has ended: another message's run waits
            return _paused(asked, state["escalation_id"], state["intent"])
        async with self._tools.sessions() as session, session.begin():
            service = ConversationService(session)
            reply = await service.reply(asked.id, Role.ASSISTANT, state["reply"])
        await self._forget(thread_id)
        return _completed(state, reply)

    async def resolve_escalation(
        self, *, escalation_id: int, resolution: str, resolved_by: str
    ) -> Result:
        """Resume the run that waits for this answer, and send it to the customer: once.

        Safe against a crash at any point, because one commit decides: it closes the escalation and
        writes the reply together. Before it nothing was sent, after it there is nothing to do. The
        row lock that keeps others out ends with the connection, whatever ends that. A process that
        is killed in between leaves an escalation that can be resolved again, and a run that is
        before its pause, paused, past it, or ended; `Runs.finish` goes on from each of them. If
        the killed process had given its decision to the run, that decision stands: it is carried
        out now, and a different one is refused.

        Raises:
            NonCompliantReply: the answer breaks a rule; nothing is changed.
            NotFound: there is no such escalation.
            Conflict: it is resolved, somebody is resolving it, it is assigned to another, or an
                earlier decision stood.
            Unavailable: the database can't be reached.
        """
        decision = Decision(resolution=resolution, resolved_by=resolved_by)
        # Before anything is claimed: the human can still write it again.
        checked = await ComplianceCheckerAgent(self._tools.config).process({"content": resolution})
        if not checked.metadata["is_compliant"]:
            raise NonCompliantReply(checked.metadata["issues"])

        async with self._tools.sessions() as session, session.begin():
            service = ConversationService(session)
            escalation = await service.claim_escalation(escalation_id, resolved_by)
            state = await self._decide(escalation, decision)
            if "decision" not in state:
                # No run waits: a human opened the escalation, or the checkpoints are lost.
                state = State(
                    agent="human_agent",
                    intent=escalation.reason,
                    decision=decision,
                    reply=checked.content,
                    compliance=checked.metadata,
                )
            decided = state["decision"]
            reply = await service.resolve_escalation(
                escalation,
                resolution=decided["resolution"],
                resolved_by=decided["resolved_by"],
                reply=state["reply"],
            )
        await self._forget(escalation.thread_id)
        if decided != decision:
            raise Conflict(f"{decided['resolved_by']} had resolved the escalation.")
        return _completed(state | {"escalation_id": escalation.id}, reply)

    async def _decide(self, escalation: Escalation, decision: Decision) -> State:
        if escalation.thread_id is None:
            return State()
        async with self._runs() as runs:
            return await runs.finish(escalation.thread_id, decision)

    async def _forget(self, thread_id: str | None) -> None:
        """Drop the checkpoints of a run whose reply is written: they repeat what customers said."""
        if thread_id is None:
            return
        try:
            async with self._runs() as runs:
                await runs.forget(thread_id)
        except Unavailable as error:  # no reason to call a reply that was sent a failure
            logger.warning("checkpoints left behind", thread_id=thread_id, error=repr(error))

    async def _forget_answered(self) -> None:
        async with self._runs() as runs:
            async with self._tools.sessions() as session:
                rows = await session.scalars(
                    text(
                        "SELECT DISTINCT thread_id FROM checkpoints"
                        " JOIN messages ON thread_id = 'message-' || in_reply_to_id"
                    )
                )
                answered = rows.all()
            for thread_id in answered:
                await runs.forget(thread_id)

    @asynccontextmanager
    async def _runs(self) -> AsyncIterator["Runs"]:
        # LangGraph takes about two seconds to import: not at the start of the service, and in a
        # thread, so that other requests are served meanwhile.
        runs, checkpointer = await asyncio.to_thread(_import_langgraph)
        if self._pool_size:
            self._pool = self._pool or checkpointer.make_pool(self._pool_size)
            await self._pool.open()  # does nothing when it is open
        async with checkpointer.open_saver(self._pool) as saver:
            yield runs.Runs(saver, self._tools)


def _import_langgraph() -> tuple[ModuleType, ModuleType]:
    from . import checkpointer, runs  # noqa: PLC0415

    return runs, checkpointer


async def _known(service: ConversationService, asked: Message) -> Result | None:
    """The answer that a message got before; None if its process died before it gave one."""
    found = await service.answer_to(asked)
    if isinstance(found, Escalation):
        return _paused(asked, found.id, found.reason)
    if found is None:
        if datetime.now(UTC) - asked.created_at < IN_WORK:
            raise InProgress("The message is being answered.")
        return None
    return Result(
        status="completed",
        agent="knowledge_agent",
        content=found.content,
        metadata={
            "conversation_id": asked.conversation_id,
            "message_id": asked.id,
            "reply_id": found.id,
        },
    )


def _paused(asked: Message, escalation_id: int, reason: str) -> Result:
    return Result(
        status="paused",
        agent="system",
        content=default_triage_rules().acknowledgement_of(reason),
        metadata={
            "conversation_id": asked.conversation_id,
            "message_id": asked.id,
            "escalation_id": escalation_id,
            "intent": reason,
        },
    )


def _completed(state: State, reply: Message) -> Result:
    return Result(
        status="completed",
        agent=state["agent"],
        content=reply.content,
        metadata={
            "conversation_id": reply.conversation_id,
            "message_id": reply.in_reply_to_id,
            "reply_id": reply.id,
            "escalation_id": state.get("escalation_id"),
            "intent": state["intent"],
            "decided_by": state.get("decided_by"),
            "sources": state.get("sources", []),
            **state["compliance"],
        },
    )
