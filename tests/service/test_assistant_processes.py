"""The assistant over several processes: paused in one that is killed, resumed in another, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.command import overlaid
from tests.support.running import (
    Production,
    Service,
    begin_conversation,
    create,
    log_in,
    new_customer,
    serving,
)

CONCERNS = ["template/*agents*", "template/*coordinator*"]

COMPLAINT = "I am very unhappy with the new fees."
ANSWER = "The fee is refunded."
STAFF = "is_staff = true"


def authorized(service: Service, there: Production, who: str) -> Service:
    """The service, called by a new account."""
    service.headers["Authorization"] = f"Bearer {log_in(service, there, who)}"
    return service


def complain(service: Service, conversation: str) -> int:
    """Say something that only a human may answer. Returns the escalation's id."""
    status, answer = service.call("POST", f"{conversation}/messages", {"content": COMPLAINT})
    assert (status, answer["status"], answer["reply_id"]) == (202, "paused", None)
    return int(answer["escalation_id"])


def said(service: Service, conversation: str) -> list[tuple[str, str]]:
    """Who said what in a conversation."""
    status, read = service.call("GET", f"{conversation}/messages?limit=100")
    assert status == 200
    return [(message["role"], message["content"]) for message in read["items"]]


@pytest.mark.thorough
def test_what_one_process_paused_another_resumes_once(there: Production) -> None:
    with serving(there.project, there.env) as first:
        conversation = begin_conversation(authorized(first, there, STAFF))
        escalation = complain(first, conversation)
        first.process.kill()
        first.process.wait()
    with serving(there.project, there.env) as second:
        authorized(second, there, STAFF)
        assert said(second, conversation) == [("customer", COMPLAINT)]
        url = f"/api/v1/escalations/{escalation}/resolve"
        status, answer = second.call("POST", url, {"content": ANSWER})
        assert (status, answer["content"]) == (200, ANSWER)
        assert second.call("POST", url, {"content": ANSWER})[0] == 409
        assert said(second, conversation) == [("customer", COMPLAINT), ("human", ANSWER)]


@pytest.mark.thorough
def test_of_twenty_who_resolve_over_http_one_wins(there: Production) -> None:
    """On two processes, which know of each other only by the database."""
    with serving(there.project, there.env) as one, serving(there.project, there.env) as other:
        services = [authorized(service, there, STAFF) for service in (one, other)]
        for service in services:  # each imports LangGraph before it counts
            complain(service, begin_conversation(service))
        conversation = begin_conversation(one)
        url = f"/api/v1/escalations/{complain(one, conversation)}/resolve"

        def resolve(number: int) -> tuple[int, Any]:
            return services[number % 2].call("POST", url, {"content": f"Answer {number}."})

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(resolve, range(20)))
        assert Counter(status for status, _ in answers) == {200: 1, 409: 19}
        (winner,) = (answer for status, answer in answers if status == 200)
        assert said(one, conversation) == [("customer", COMPLAINT), ("human", winner["content"])]


def test_a_customer_sees_nothing_of_another(there: Production) -> None:
    """Each way to a conversation and its escalation, as its owner, as somebody else, as nobody."""
    with serving(there.project, there.env) as service:
        accounts = {}
        for name in ("owner", "other"):
            customer = create(authorized(service, there, STAFF), new_customer()).body["id"]
            accounts[name] = (customer, log_in(service, there, f"customer_id = {customer}"))
        owner = service.client(Authorization=f"Bearer {accounts['owner'][1]}")
        other = service.client(Authorization=f"Bearer {accounts['other'][1]}")
        _, begun = owner.call("POST", "/api/v1/conversations", {})
        conversation = f"/api/v1/conversations/{begun['id']}"
        status, paused = owner.call("POST", f"{conversation}/messages", {"content": COMPLAINT})
        assert status == 202
        escalation = f"/api/v1/escalations/{paused['escalation_id']}"
        content = {"content": "Let me in."}
        for method, path, body, statuses in [
            ("GET", conversation, None, (200, 404, 401)),
            ("GET", f"{conversation}/messages", None, (200, 404, 401)),
            ("POST", f"{conversation}/messages", content, (202, 404, 401)),
            (
                "POST",
                "/api/v1/conversations",
                {"customer_id": accounts["owner"][0]},
                (201, 404, 401),
            ),
            ("GET", "/api/v1/escalations", None, (403, 403, 401)),
            ("POST", f"{escalation}/assign", None, (403, 403, 401)),
            ("POST", f"{escalation}/resolve", content, (403, 403, 401)),
        ]:
            found = tuple(
                client.call(method, path, body)[0] for client in (owner, other, service.client())
            )
            assert found == statuses, f"{method} {path}"
        # Which ids exist, nobody learns from a difference.
        missing = other.call("GET", "/api/v1/conversations/999999")[1]
        hidden = other.call("GET", conversation)[1]
        assert {**missing, "request_id": ""} == {**hidden, "request_id": ""}


# Runs in the rendered project. Each line of its input is a method of the coordinator and its
# arguments, carried out by a child of its own: LangGraph is imported once, in the parent.
DESK = """\
import asyncio, datetime, json, os, sys
from app.coordinator import agent_coordinator
agent_coordinator._import_langgraph()
print("ready", flush=True)
for line in sys.stdin:
    method, arguments = json.loads(line)
    if method == "recover":
        arguments = {"older_than": datetime.timedelta(0)}
    child = os.fork()
    if not child:
        coordinator = agent_coordinator.AgentCoordinator()
        try:
            result = asyncio.run(getattr(coordinator, method)(**arguments))
        except agent_coordinator.Conflict as error:
            result = {"conflict": str(error)}
        print(json.dumps(result), flush=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass(frozen=True)
class Desk:
    """Carries out what is asked of the coordinator, each time in a new process."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        """The next line that it writes."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the desk is gone"
        return line

    def begin(self, method: str, **arguments: Any) -> int:
        """Begin something. Returns the id of the process."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def end(self) -> Any:
        """What came of it; None if the process was killed first."""
        line = self.line()
        result = None
        if not line.strip().isdecimal():
            result, line = json.loads(line), self.line()
        assert int(line) in (0, signal.SIGKILL)
        return result

    def do(self, method: str, **arguments: Any) -> Any:
        """Do something to its end."""
        self.begin(method, **arguments)
        result = self.end()
        assert result is not None
        return result

    def kill_after(self, seconds: float, method: str, **arguments: Any) -> None:
        """Do something, with `kill -9` at this time."""
        child = self.begin(method, **arguments)
        time.sleep(seconds)
        with suppress(ProcessLookupError):  # it came to its end
            os.kill(child, signal.SIGKILL)
        self.end()


@contextmanager
def desk(there: Production) -> Iterator[Desk]:
    process = subprocess.Popen(
        [str(there.project.python), "-c", DESK],
        cwd=there.project.path,
        env=overlaid(there.env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        found = Desk(process)
        assert found.line() == "ready\n"
        yield found
    finally:
        process.communicate(timeout=30)


def sweep(there: Production, kills: int) -> None:
    """Kill at instants spread over a pause and over its resolution; each time all is made good."""
    answer = {"resolution": ANSWER, "resolved_by": "Grace"}
    with desk(there) as at:
        at.do("recover")  # of other tests, too
        seconds = []
        for method in ("process_message", "resolve_escalation"):
            begun = time.monotonic()
            if method == "process_message":
                paused = at.do(method, message=COMPLAINT, customer_id=1)
            else:
                at.do(method, escalation_id=paused["metadata"]["escalation_id"], **answer)
            seconds.append(time.monotonic() - begun)
        outcomes = Counter[str]()
        for number in range(kills):
            (opened,) = there.servers.sql(
                "INSERT INTO conversations (customer_id) VALUES (1) RETURNING id"
            )
            message = {"message": COMPLAINT, "customer_id": 1, "conversation_id": opened[0]}
            part = 1.2 * (number + 1) / kills  # the last ones come too late
            at.kill_after(part * seconds[0], "process_message", **message)
            mine = f"FROM messages WHERE conversation_id = {opened[0]}"
            recorded = there.servers.sql(f"SELECT 1 {mine}")
            escalated = there.servers.sql(
                f"SELECT 1 FROM escalations WHERE conversation_id = {opened[0]}"
            )
            outcomes["escalated" if escalated else "recorded" if recorded else "unheard"] += 1
            if recorded and number % 2:  # the customer gives up, and the scheduled job comes
                at.do("recover")
            else:
                assert at.do("process_message", **message)["status"] == "paused"
            (escalation,) = there.servers.sql(
                f"SELECT id FROM escalations WHERE conversation_id = {opened[0]}"
            )
            at.kill_after(
                part * seconds[1], "resolve_escalation", escalation_id=escalation[0], **answer
            )
            result = at.do("resolve_escalation", escalation_id=escalation[0], **answer)
            outcomes["resolved" if "conflict" in result else "unresolved"] += 1
            replies = there.servers.sql(f"SELECT content {mine} AND role = 'human'")
            assert replies == [[ANSWER]], f"kill {number} of {kills}"
            status = f"SELECT status FROM escalations WHERE id = {escalation[0]}"
            assert there.servers.sql(status) == [["resolved"]]
        assert at.do("recover") == [[], []], "nothing waits for an answer"
        done = "FROM checkpoints JOIN messages ON thread_id = 'message-' || in_reply_to_id"
        assert there.servers.sql(f"SELECT thread_id {done}") == []
        print(f"{2 * kills} kills: {dict(outcomes)}; undisturbed {seconds} s")


@pytest.mark.thorough
def test_killed_at_any_instant_it_replies_once(there: Production) -> None:
    sweep(there, kills=5)


@pytest.mark.slow
def test_killed_at_each_of_many_instants_it_replies_once(there: Production) -> None:
    sweep(there, kills=30)
