"""The prefix is added once, and only as whole words."""

import pytest

from dreamgen.data.prompts import bare_instruction


@pytest.mark.parametrize(
    ("text", "prefix", "bare"),
    [
        ("The arm works. lift it", "The arm works. ", "lift it"),
        ("Robots lift it", "Robot ", "Robots lift it"),
        (" lift\n it ", "", "lift it"),
        ("The arm works.\n", "The arm works. ", ""),
    ],
)
def test_prefix_is_not_repeated(text, prefix, bare):
    assert bare_instruction(text, prefix) == bare
