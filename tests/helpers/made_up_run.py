"""Made-up files of a run, with any number of rollouts and every kind of group."""

import random

from relay_trl.call_syntax import CallSyntax
from relay_trl.rewards import difficulty, difficulty_aware
from relay_trl.rollout_files import Draw, RolloutWriter
from relay_trl.trace import Author, Call, Outcome, Span, StopReason, Trace

SYNTAX = CallSyntax()
SIZE = 8


def student(text, malformed=0):
    return Span(Author.STUDENT, [1] * len(text), text, malformed=malformed)


def rollout(rng, question, answer, is_right):
    """One rollout: plain, with a call, with a malformed command, or one that its teacher failed."""
    left, shown = f"{question}{answer};#", str(answer if is_right else answer + 7)
    kind = rng.choice(
        ["plain", "plain", "call", "call", "denied", "malformed", "failed" if rng.random() < 0.1 else "plain"]
    )
    if kind == "call":
        text, n = f"{question}<call>{len(shown)}</call>", len(shown)
        spans = [student(text), Span(Author.TEACHER, [2] * n, shown), student(f";#{shown}")]
        return Trace([0], spans, [Call(len(text), n, n, n, Outcome.ANSWERED, 0.02)], StopReason.EOS)
    if kind == "denied":
        text = f"{question}<call>40</call>{shown};#{shown}"
        return Trace([0], [student(text)], [Call(len(text), 40)], StopReason.LENGTH)
    if kind == "malformed":
        return Trace([0], [student(f"<call></call>{left}{shown}", malformed=1)], [], StopReason.EOS)
    if kind == "failed":
        error = "The teacher at http://teacher:8001/v1 did not answer within 120 s."
        return Trace([0], [student(question)], [Call(0, 3, 3, 0, Outcome.FAILED)], StopReason.TEACHER_ERROR, error)
    return Trace([0], [student(left + shown)], [], StopReason.EOS)


def write_group(writer, rng, step, group, question=None, advantages=None):
    """One group of eight rollouts, with advantages of its own unless given."""
    a, b, c = rng.randint(11, 99), rng.randint(2, 9), rng.randint(1, 99)
    answer = a * b + c
    question = question or f"{a}*{b}+{c}="
    chance = rng.choice([0.1, 0.5, 0.9])
    correct = [rng.random() < chance for _ in range(SIZE)]
    traces = [rollout(rng, question, answer, is_right) for is_right in correct]
    scored = [i for i, trace in enumerate(traces) if not trace.has_failed]
    called = [trace.has_called for trace in traces]
    kind = difficulty([correct[i] for i in scored], [called[i] for i in scored]) if scored else None
    rewards = difficulty_aware(correct, called, [trace.teacher_share for trace in traces])
    rewards = [reward if i in scored else float("nan") for i, reward in enumerate(rewards)]
    mean = sum(rewards[i] for i in scored) / max(1, len(scored))
    advantages = advantages or [rewards[i] - mean if i in scored else 0.0 for i in range(SIZE)]
    rows = [{"prompt": question, "answer": str(answer)}] * SIZE
    first = group * SIZE
    judged = {"correct": correct, "advantages": advantages, "rewards": [0.0] * first + rewards}
    draw = Draw("train", step, first, SIZE, rows, traces=traces, kinds=[None] * group + [kind], **judged)
    writer.add(draw)


def write_run(folder, rollouts=160, groups_per_step=8, seed=0):
    """A run of so many rollouts; returns its writer, to go on with."""
    rng = random.Random(seed)
    steps = rollouts // SIZE // groups_per_step
    writer = RolloutWriter(folder, SYNTAX)
    about = {"student_base": "Qwen/Qwen3-0.6B", "teacher": "Qwen/Qwen3-8B", "reward": "difficulty_aware", "seed": seed}
    writer.start(0, {**about, "training_set": "dapo_math", "max_steps": steps})
    for step in range(1, steps + 1):
        for group in range(groups_per_step):
            write_group(writer, rng, step, group)
        done = step / steps
        figures = {"relay/accuracy": 0.45 + 0.4 * done, "relay/teacher_share": 0.3 - 0.2 * done}
        figures |= {"relay/call_rate": 0.9 - 0.4 * done, "reward": 0.4 + done, "relay/malformed": 0.2 * (1 - done)}
        figures["completions/mean_length"] = 40 - 8 * done
        writer.log(step, {name: value * rng.uniform(0.9, 1.1) for name, value in figures.items()})
    return writer
