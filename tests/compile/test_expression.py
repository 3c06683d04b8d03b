"""The expression parser: what it accepts is printed back the same, what it refuses it points at."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gossamer.compile.expressions.expression import ALONG, REDUCERS, parse

# text, what is wrong, the character that the arrow points at
WRONG = [
    ("", "the name of a tensor, found 'the end'", 0),
    ("C", "expected '[' after C", 1),
    ("C[m += A[m]", "expected ',' or ']'", 4),
    ("C[m] += ", "the name of a tensor", 7),
    ("C[m] += A[m,]", "an axis or a number, found ']'", 12),
    ("C[m] += A[m] B[m]", "'*', '+', '-' or the end", 13),
    ("C[m] += A[m] & B[m]", "'&' has no meaning", 13),
    ("C[m] avg= A[m]", "there is no reducer 'avg'", 5),
    ("C[m] cumsum= A[m]", "and the axis that cumsum runs along", 11),
    ("C[m] cumsum(k)= A[m]", "runs along axis k, which C lacks", 5),
    ("C[m] = A[m,k]", "axis k is not in C; name a reducer", 5),
    ("C[m] softmax(m)= A[m,k]", "reduces nothing, but axis k", 5),
    ("C[m,n] += A[m]", "axis n of C is in no operand", 0),
    ("C[m] += A[m] * A[m]", "A appears twice", 15),
    ("C[m] += C[m]", "C appears twice", 8),
    ("C[m] += A[m,m]", "uses an axis of 'm' twice", 12),
    ("C[m+1] += A[m]", "the target must be indexed by plain axes", 0),
    ("C[m] += A[3]", "the index '3' names no axis", 10),
    ("C[m] += A[2*]", "an axis after '*'", 12),
]  # fmt: skip


@pytest.mark.parametrize("text, problem, place", WRONG, ids=[row[0] or "empty" for row in WRONG])
def test_errors_quote_the_text_and_point_at_the_place(text, problem, place):
    with pytest.raises(ValueError) as error:
        parse(text)
    said, quoted, arrow = str(error.value).split("\n")
    assert problem in said
    assert quoted == "  " + text
    assert arrow == " " * (place + 2) + f"^ position {place}"


def test_not_a_string():
    with pytest.raises(TypeError, match="expression must be a string, got int"):
        parse(3)


NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,2}", fullmatch=True)


@st.composite
def expressions(draw):
    """Valid by construction: (text, target axes, reducer, operands as lists of index texts)."""
    axes = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    operands = draw(st.lists(st.lists(st.sampled_from(axes), unique=True, min_size=1), min_size=1, max_size=3))
    used = list(dict.fromkeys(axis for operand in operands for axis in operand))
    target = draw(st.lists(st.sampled_from(used), unique=True))
    reducer = draw(st.sampled_from(REDUCERS[1:] if set(used) - set(target) else REDUCERS))
    if not set(used) - set(target) and draw(st.booleans()):
        reducer = f"{draw(st.sampled_from(ALONG))}({draw(st.sampled_from(target))})="
    decorate = st.sampled_from(("{}", "2*{}", "{}+1", "{}-3", "1+{}", "-{}", "2*{}+1"))
    indices = [[draw(decorate).format(axis) for axis in operand] for operand in operands]
    marks = [draw(st.sampled_from("*+-")) for _ in operands[1:]]
    space = draw(st.sampled_from(("", " ", "  ")))
    source = f"X0[{','.join(indices[0])}]"
    for i, mark in enumerate(marks, 1):
        source += f"{space}{mark}{space}X{i}[{(',' + space).join(indices[i])}]"
    return f"C[{','.join(target)}] {reducer}{space}{source}", target, reducer, indices


@settings(max_examples=100)
@given(expressions())
def test_valid_expressions_come_back(drawn):
    text, target, reducer, indices = drawn
    parsed = parse(text)
    assert list(parsed.target.axes) == target
    assert parsed.reducer == re.sub(r"\(.*\)", "", reducer)
    assert [[index.text for index in operand.indices] for operand in parsed.operands] == indices
    assert all(
        index.derived == (not index.text.isidentifier()) for operand in parsed.operands for index in operand.indices
    )


@settings(max_examples=500)
@given(st.one_of(
    st.text(max_size=30),
    st.text(alphabet="CAB[]mkn,+*-= 12()", max_size=30),
    st.builds(lambda e, i, c: e[0][: i % (len(e[0]) + 1)] + c + e[0][i % (len(e[0]) + 1) :],
              expressions(), st.integers(0, 60), st.sampled_from("[],=+*-() x9\n\t&é")),
))  # fmt: skip
@example("C[m]+=A[m")
@example("\n")
def test_any_text_is_parsed_or_refused_with_its_text(text):
    try:
        parse(text)
    except ValueError as error:
        assert text in str(error)
        place = int(re.search(r"position (\d+)$", str(error))[1])
        assert 0 <= place <= len(text)
