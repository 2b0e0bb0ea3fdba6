"""Answers of made-up runs, for reports."""

from relay_trl.evaluation.answer_files import Answer
from relay_trl.trace import Author, Span, StopReason, Trace


def student(text, removed=0, kept=None):
    ids = list(range(len(text)))
    return Span(Author.STUDENT, ids, text, None, ids[removed:], text if kept is None else kept, removed)


def teacher(text):
    ids = list(range(len(text)))
    return Span(Author.TEACHER, ids, text, None, ids, text)


def answer(method, index, correct, *spans, calls=(), kind=None, prompt=None, gold="1", stop=StopReason.EOS):
    trace = Trace([0], list(spans), list(calls), stop, "The teacher is away." if correct is None else None)
    return Answer(method, "set", index, 0, prompt or f"question {index}", gold, correct, kind, trace)


def log(count=40):
    return [
        *(
            {"step": i, "relay/accuracy": i / count, "relay/teacher_share": 0.1, "relay/call_rate": 0.5}
            for i in range(count)
        ),
        {"step": count, "eval_relay/accuracy": 0.9, "eval_relay/teacher_share": 0.1},
        {"step": count, "train_runtime": 3.0},
    ]
