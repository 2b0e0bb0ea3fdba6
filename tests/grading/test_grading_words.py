"""Letters and words: what counts as the right option or the right word, and near misses that do not."""

import pytest

from relay_trl.grading.words import ChoiceGrader, TextGrader, load_grader, stated_answer

RIGHT_CHOICES = [
    r"so \boxed{B}",
    r"\boxed{(B)}",
    r"\boxed{\text{B}}",
    r"\boxed{B. 5 m/s}",
    r"\boxed{B) 5 m/s}",
    r"\boxed{5 m/s}",
    r"\boxed{\text{5 m/s}}",
    "I think C, no: the answer is (B).",
    "The final answer is **B**",
    r"The answer is A. Wait, \boxed{A}, no \boxed{B}",
]
WRONG_CHOICES = [
    r"\boxed{A}",
    r"\boxed{b is wrong}",
    r"\boxed{BC}",
    r"\boxed{Because}",
    r"\boxed{5 m}",
    "B",
    "",
    r"\boxed{}",
    r"the answer is B, so \boxed{C}",
    "The answer is C. The answer is (D)",
]


@pytest.mark.parametrize(("texts", "verdict"), [(RIGHT_CHOICES, True), (WRONG_CHOICES, False)])
def test_options(texts, verdict):
    with ChoiceGrader() as grader:
        assert dict(zip(texts, grader.grade(texts, [["B", "5 m/s"]] * len(texts)), strict=True)) == dict.fromkeys(
            texts, verdict
        )


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        (r"\boxed{Yes}", "yes", True),
        ("The answer is: no.", "no", True),
        (r"\boxed{(C)}", "C", True),
        (r"\boxed{c}", "(C)", True),
        (r"\boxed{1, 2,3}", "1,2,3", True),
        (r"\boxed{[1, 2]}", "1,2", True),
        (r"\boxed{42.0}", "42", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{'Ann, Bob'}", "ann,bob", True),
        (r"\boxed{no}", "yes", False),
        (r"\boxed{3, 2, 1}", "1,2,3", False),
        (r"\boxed{42.1}", "42", False),
        (r"\boxed{yes or no}", "yes", False),
        (r"\boxed{1}", "1,2", False),
        ("yes", "yes", False),  # nothing says that this is the answer
    ],
)
def test_words(answer, gold, verdict):
    assert TextGrader().grade([answer], [gold]) == [verdict]


def test_a_marker_takes_the_place_of_the_box():
    assert TextGrader("#").grade(["so #yes", r"\boxed{yes}", "the answer is yes"], ["yes"] * 3) == [True, False, False]


@pytest.mark.parametrize("grader", [ChoiceGrader(), TextGrader()])
def test_golds_that_cannot_be_matched(grader):
    assert [grader.is_gradable(gold) for gold in (None, "", " ", [], ["B", None], 3, "B", ["B", "5"])] == [
        *[False] * 6,
        True,
        True,
    ]


def test_an_answer_of_a_megabyte_is_wrong_and_quick():
    huge = r"the answer is \boxed{" + "B" * 1_000_000
    for text in (huge, huge + "}", "the answer is " * 70_000, "\\boxed{" * 150_000):
        assert stated_answer(text) is None or len(stated_answer(text)) < 20
        for kind in ("choice", "text", "math"):
            with load_grader(kind) as grader:
                assert grader.grade([text], ["B"]) == [False]


def test_an_unknown_grader():
    with pytest.raises(ValueError, match="math, choice or text"):
        load_grader("judge")
