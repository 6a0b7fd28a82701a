"""The workflow as a LangGraph graph. Importing LangGraph costs about two seconds.

    classify ─┬─> answer ──────────────────────────────┬─> check ─> end
              └─> hand_off ─┬─> wait (interrupt) ──────┘
                            └─> end, when the conversation waits for a human already

A run that is paused is found again by the names of its nodes: don't rename `wait`.

Nodes may run again after a crash. None of them sends anything: the coordinator writes the reply
when the run has ended.
"""

from functools import cache
from typing import Any, Literal

from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from ..agents.compliance_checker import ComplianceCheckerAgent
from ..agents.human_agent import HumanAgent
from ..agents.knowledge_agent import KnowledgeAgent
from ..agents.triage_agent import TriageAgent
from ..services.conversations import ConversationService
from .state import State, Tools


async def classify(state: State, runtime: Runtime[Tools]) -> dict[str, Any]:
    """Find out what the message is about."""
    triage = TriageAgent(runtime.context.config, model=runtime.context.model)
    response = await triage.process({"content": state["message"]})
    return {"intent": response.content, **response.metadata}


def who_answers(state: State) -> Literal["answer", "hand_off"]:
    """A human, or the knowledge base."""
    return "hand_off" if state["hand_off"] else "answer"


async def answer(state: State, runtime: Runtime[Tools]) -> dict[str, Any]:
    """Draft an answer from the knowledge base."""
    async with runtime.context.sessions() as session:
        agent = KnowledgeAgent(runtime.context.config, session)
        response = await agent.process({"content": state["message"]})
    return {"agent": "knowledge_agent", "draft": response.content, **response.metadata}


async def hand_off(state: State, runtime: Runtime[Tools]) -> dict[str, Any]:
    """Open an escalation. In a node of its own, because a resumed node runs from its beginning."""
    async with runtime.context.sessions() as session:
        agent = HumanAgent(runtime.context.config, ConversationService(session))
        response = await agent.process(
            {
                "conversation_id": state["conversation_id"],
                "reason": state["intent"],
                "message_id": state["message_id"],
                "thread_id": state["thread_id"],
            }
        )
    return {
        "escalation_id": response.metadata["escalation_id"],
        "escalation_is_ours": response.metadata["thread_id"] == state["thread_id"],
    }


def who_waits(state: State) -> Literal["wait", "__end__"]:
    """This run, unless another message of the conversation asked for a human a moment before."""
    return "wait" if state["escalation_is_ours"] else "__end__"


async def wait(state: State) -> dict[str, Any]:
    """Stop here, for days if need be, until a human has decided."""
    decision = interrupt({"escalation_id": state["escalation_id"], "reason": state["intent"]})
    return {"agent": "human_agent", "decision": decision, "draft": decision["resolution"]}


async def check(state: State, runtime: Runtime[Tools]) -> dict[str, Any]:
    """Nothing reaches a customer unchecked, whoever wrote it."""
    response = await ComplianceCheckerAgent(runtime.context.config).process(
        {"content": state["draft"]},
        context={
            "product_type": state["product_type"],
            "customer_message": state["message"],
        },
    )
    return {"reply": response.content, "compliance": response.metadata}


@cache
def build() -> StateGraph[State, Tools, State, State]:
    """The graph, to be compiled with a checkpointer."""
    graph = StateGraph(State, Tools)
    for node in (classify, answer, hand_off, wait, check):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "classify")
    graph.add_conditional_edges("classify", who_answers)
    graph.add_edge("answer", "check")
    graph.add_conditional_edges("hand_off", who_waits)
    graph.add_edge("wait", "check")
    graph.add_edge("check", END)
    return graph
