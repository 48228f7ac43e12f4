"""What every attack prints: how much was tried, and how much survived."""

import pytest

_tallies: dict[str, dict] = {}


@pytest.fixture
def survives(request):
    """`survives(numbers)`: print them at the end, and fail unless all that was tried survived."""

    def check(numbers: dict) -> None:
        _tallies[request.node.name.removeprefix("test_")] = numbers
        assert not numbers["failures"], numbers["failures"][:10]
        assert numbers["survived"] == numbers["tried"]

    return check


def pytest_terminal_summary(terminalreporter):
    if not _tallies:
        return
    terminalreporter.section("attack")
    for name, numbers in _tallies.items():
        words = [f"{key} {value}" for key, value in numbers.items() if key != "failures" and value]
        terminalreporter.write_line(f"{name.replace('_', ' ')}: {', '.join(words)}")
