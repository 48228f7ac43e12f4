"""Long work says how it goes; short work says nothing."""

from maetok_lab import progress


def test_work_over_five_seconds_says_how_much_is_done_and_left(monkeypatch, capsys):
    clock = iter(range(0, 400, 4))  # four seconds an item
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track("abcdef", "letters")) == list("abcdef")
    assert capsys.readouterr().out.splitlines() == [
        "letters: 1 of 6, about 40 s left",
        "letters: 4 of 6, about 10 s left",
    ]


def test_short_work_says_nothing(capsys):
    assert list(progress.track([1, 2, 3], "numbers")) == [1, 2, 3]
    assert list(progress.track([], "nothing")) == []
    assert capsys.readouterr().out == ""
