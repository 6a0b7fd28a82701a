from fastapi import FastAPI, HTTPException
from sqlalchemy.exc import IntegrityError

from polls.store import Poll, Session, Vote, note, tally

app = FastAPI()


@app.post("/polls", status_code=201)
def ask(question: str):
    with Session() as session:
        session.add(poll := Poll(question=question))
        try:
            session.commit()
        except IntegrityError:
            raise HTTPException(409) from None
        return poll.id


@app.post("/polls/{number}/votes", status_code=201)
async def vote(number: int, answer: str):
    with Session.begin() as session:
        session.add(Vote(poll_id=number, answer=answer))
    await note(f"a vote in {number}")


@app.get("/polls/{number}")
def result(number: int):
    return tally(number)
