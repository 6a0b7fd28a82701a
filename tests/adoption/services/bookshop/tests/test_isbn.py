def test_isbn_has_thirteen_digits():
    assert len("9780141439600") == 13
