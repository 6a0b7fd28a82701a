"""Runs of the graph, each known by its thread id. Imports LangGraph."""

from typing import TYPE_CHECKING, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

from .graph import build
from .state import Decision, State, Tools

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig


class Runs:
    """Starts runs, and takes them to their end."""

    def __init__(self, checkpointer: BaseCheckpointSaver[str], tools: Tools) -> None:
        self._checkpointer = checkpointer
        self._graph = build().compile(checkpointer)
        self._tools = tools

    async def start(self, state: State) -> State:
        """Run until the end, where the state has a reply, or until a human is needed."""
        return await self._invoke(state["thread_id"], state)

    async def finish(self, thread_id: str, decision: Decision) -> State:
        """Run until the end from wherever the run is, giving it the decision if it waits for one.

        Returns:
            The state at the end: with the decision that counted, which is an earlier one if that
            reached the run before its process died. Without one if nothing waited.
        """
        while True:
            snapshot = await self._graph.aget_state(_config(thread_id))
            if not snapshot.next:
                return cast("State", snapshot.values)
            await self._invoke(thread_id, Command(resume=decision) if snapshot.interrupts else None)

    async def forget(self, thread_id: str) -> None:
        """Delete what is stored of a run."""
        await self._checkpointer.adelete_thread(thread_id)

    async def _invoke(self, thread_id: str, given: "State | Command[str] | None") -> State:
        result = await self._graph.ainvoke(
            given,
            _config(thread_id),
            context=self._tools,
            # Each step is stored before the next begins: an escalation that exists has a run.
            durability="sync",
        )
        return cast("State", result)


def _config(thread_id: str) -> "RunnableConfig":
    return {"configurable": {"thread_id": thread_id}}
