import asyncio
import unittest

import pytest
from polls.store import Poll, Session, Vote, audit_engine, note, noted, tally


def test_nobody_has_voted():
    assert tally(1) == {}


@pytest.mark.unit
def test_tally(session):
    session.add(poll := Poll(question="Tea"))
    session.flush()
    session.add_all(Vote(poll_id=poll.id, answer=answer) for answer in ("yes", "no", "yes"))
    session.commit()
    assert tally(poll.id) == {"yes": 2, "no": 1}


@pytest.mark.unit
def test_question_is_asked_as_it_is():
    assert Poll(question="Tea").question == "Tea"


def test_noted():
    async def both():
        await note("first")
        found = await noted()
        await audit_engine.dispose()
        return found

    assert asyncio.run(both()) == ["first"]


class TestPolls(unittest.TestCase):
    def setUp(self):
        with Session.begin() as session:
            session.add(Poll(question="Milk"))

    def test_is_there(self):
        with Session() as session:
            self.assertEqual([poll.question for poll in session.query(Poll)], ["Milk"])

    def test_is_there_again(self):
        self.test_is_there()


class TestNotes(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        await note("before")
        self.addAsyncCleanup(audit_engine.dispose)

    async def test_after(self):
        await note("after")
        self.assertEqual(await noted(), ["before", "after"])

    async def test_alone(self):
        self.assertEqual(await noted(), ["before"])
