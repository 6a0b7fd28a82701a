from concurrent.futures import ThreadPoolExecutor

from polls.store import Poll


def test_votes_are_counted(client):
    number = client.post("/polls?question=Tea").json()
    for answer in ("yes", "yes", "no"):
        assert client.post(f"/polls/{number}/votes?answer={answer}").status_code == 201
    assert client.get(f"/polls/{number}").json() == {"yes": 2, "no": 1}


def test_of_eight_at_once_one_asks(client):
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda _: client.post("/polls?question=Tea").status_code, range(8))
    assert sorted(answers) == [201] + [409] * 7


def test_stored(client, session):
    client.post("/polls?question=Coffee")
    assert [poll.question for poll in session.query(Poll)] == ["Coffee"]
