"""The options of a search for calls, and their checks. `searched_calls.py` searches."""

from dataclasses import dataclass

from ..engines.base import Sampling
from ..options import TeacherFields


@dataclass
class SearchFields(TeacherFields):
    """The options of a search.

    Args:
        teacher_temperature (`float`, defaults to `0.7`): of the teacher's tokens.
        tries (`int`, defaults to `8`): relays and new answers for a problem, including the student's first answer.
        max_calls (`int`, defaults to `3`): most calls in one answer.
        min_call_tokens (`int`, defaults to `1`): smallest n.
        max_call_tokens (`int`, *optional*): largest n.
        disagreement (`float`, defaults to `0.1`): a token needs help if the teacher gives it a lower probability.
        doubt (`float`, defaults to `0.8`): a token also needs help if the student gives it a lower probability than this and
            the teacher does not. A call also covers other tokens in a row to which the student gives a lower one.
        gap (`int`, defaults to `3`): most tokens between two such tokens in one call.
        every_place (`bool`, defaults to `False`): try a call at every place of an answer that needs help, the last one first, and
            look for a second call only if none of them was enough. Otherwise only the first place is tried, which in free text
            is often a mere difference in style.
        keep_lucky (`float`, defaults to `1.0`): share of the problems in which a right answer is kept even if some of its tokens
            need help, drawn for each problem; in the others the search goes on until none do.
        step_end (`str`, *optional*): regular expression for the end of a step, which belongs to the step, such as `;`; `None`
            means lines. Whole steps are tried if the teacher gives no probabilities.
        max_teacher_failures (`int`, defaults to `16`): the run stops after so many failed problems in a row.
        grading_time_limit_s (`float`, defaults to `5.0`): seconds to grade one answer.
    """

    teacher_temperature: float = 0.7
    tries: int = 8
    max_calls: int = 3
    min_call_tokens: int = 1
    max_call_tokens: int | None = None
    disagreement: float = 0.1
    doubt: float = 0.8
    gap: int = 3
    every_place: bool = False
    keep_lucky: float = 1.0
    step_end: str | None = None
    max_teacher_failures: int = 16
    grading_time_limit_s: float = 5.0

    def check_search(self):
        """Refuses options with which no search is possible.

        Raises:
            ValueError: with the name of the field.
        """
        self.check_teacher()
        if not self.teacher:
            raise ValueError(
                "calls is 'searched', but teacher is not set; searched calls are tried out with a teacher."
            )
        Sampling(self.teacher_temperature, self.teacher_top_p)
        for name in ("tries", "max_calls", "min_call_tokens", "max_call_tokens", "max_teacher_failures"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        if self.max_call_tokens is not None and self.min_call_tokens > self.max_call_tokens:
            raise ValueError(
                f"min_call_tokens is {self.min_call_tokens} and max_call_tokens {self.max_call_tokens}; the smallest n must not "
                "be above the largest."
            )
        for name, kind in {"disagreement": "probability", "doubt": "probability", "keep_lucky": "share"}.items():
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {value}; it is a {kind} between 0 and 1.")
        if self.gap < 0:
            raise ValueError(f"gap is {self.gap}; it must be 0 or more tokens.")
