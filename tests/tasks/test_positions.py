"""The order in which a prompt mentions its options."""

from __future__ import annotations

import pytest

from trimtab.tasks.positions import listed_positions


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("the cook or the baker?", ["cook", "baker"], (0, 1)),
        ("the cook or the baker?", ["baker", "cook"], (1, 0)),
        (
            "The cook met the baker. Who, the baker or the cook?",
            ["cook", "baker"],
            (1, 0),
        ),  # the last mention
        ("The COOK and the Baker", ["cook", "baker"], (0, 1)),
        ("he said that", ["he", "she"], (None, None)),  # not all are mentioned
        ("the bakery and the cook", ["baker", "cook"], (None, None)),  # whole words only
        ("the eye doctor or the nurse", ["doctor", "nurse"], (0, 1)),
        ("the doctor or the eye  doctor", ["eye doctor", "doctor"], (1, 0)),
        ("the eye doctor", ["doctor", "eye doctor"], (None, None)),  # one mention is not two
        ("(a) or (b)", ["(b)", "(a)"], (1, 0)),
        ("Yes. or No.", ["No.", " Yes."], (1, 0)),
        ("yes or Yes", ["yes", "Yes"], (None, None)),  # cannot be told apart
        ("one, two, three", ["three", "one", "two"], (2, 0, 1)),
    ],
)
def test_positions(text: str, options: list[str], expected: tuple[int | None, ...]) -> None:
    assert listed_positions(text, options) == expected
