"""Quick moves are answered once at the start and once at their end."""

import asyncio
import time

from maetok_lab.widgets.latest import Latest


class Counted:
    def __init__(self, seconds=0.0):
        self.asked = self.shown = 0
        self.works = 0
        self.seconds = seconds
        self.latest = Latest(self.work)

    def work(self):
        time.sleep(self.seconds)
        self.works += 1
        self.shown = self.asked

    async def moves(self, count, every):
        for _ in range(count):
            self.asked += 1
            self.latest.ask()
            await asyncio.sleep(every)
        await asyncio.sleep(0.12)


def test_one_move_is_answered_at_once():
    async def move():
        counted = Counted()
        counted.asked = 1
        counted.latest.ask()
        assert counted.shown == 1

    asyncio.run(move())


def test_ten_quick_moves_are_answered_at_most_three_times_and_the_last_is_shown():
    for every, seconds in ((0.0, 0.0), (0.01, 0.0), (0.02, 0.02), (0.0, 0.05)):
        counted = Counted(seconds)
        asyncio.run(counted.moves(10, every))
        assert counted.shown == 10
        assert 2 <= counted.works <= 3, (every, seconds)


def test_moves_that_go_on_are_answered_now_and_then():
    counted = Counted()
    asyncio.run(counted.moves(40, 0.02))  # 0.8 s
    assert 4 <= counted.works <= 8
    assert counted.shown == 40


def test_slow_moves_are_all_answered():
    counted = Counted()
    asyncio.run(counted.moves(3, 0.1))
    assert counted.works == 3


def test_where_nothing_can_follow_every_move_is_answered():
    counted = Counted()
    for _ in range(3):
        counted.latest.ask()
    assert counted.works == 3


def test_work_that_raises_does_not_stop_later_work():
    async def moves():
        calls = []

        def work():
            calls.append(1)
            if len(calls) == 1:
                raise ValueError

        latest = Latest(work)
        try:
            latest.ask()
        except ValueError:
            latest.ask()
        await asyncio.sleep(0.1)
        return len(calls)

    assert asyncio.run(moves()) == 2
