"""A scripted pair for evaluations."""

from relay_trl.call_syntax import CallSyntax
from relay_trl.data.arithmetic import build_tokenizer, problems, solve
from relay_trl.engines.base import EngineError
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.evaluation.answer_files import AnswerFile, read_run
from relay_trl.evaluation.methods import load_methods
from relay_trl.evaluation.runner import build_problems, evaluate
from relay_trl.grading.grader import Grader
from relay_trl.prompts import PromptBuilder
from relay_trl.relay import RelayRules
from relay_trl.vocabulary import Vocabulary

SYNTAX = CallSyntax()


CONFIG = RelayRules(max_completion_length=60, max_calls=5, max_call_tokens=6)


METHODS = ("student", "relay", "relay_no_teacher", "fixed_2", "teacher")


SETTINGS = {"student": "scripted", "open_tag": "<call>", "close_tag": "</call>"}


def vocabulary():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call>", "</call>"]})
    return Vocabulary(tokenizer)


def encode(words, text):
    """Ids of a text whose tags are the student's special tokens."""
    return list(words.tokenizer(text, add_special_tokens=False)["input_ids"])


def student_engine(words):
    """Knows sums and simple products; asks for 4 tokens at a hard product, and guesses 1 where nobody answers."""

    def script(context):
        text = words.decode(context)
        question = text[: text.index("=") + 1]
        kept = SYNTAX.remove(text)[len(question) :]
        is_hard = "*" in question and question[question.index("*") + 1] in "46789"
        if not is_hard:
            return encode(words, solve(question)[len(kept) :] + "<eos>")
        first = question[: question.index("*") + 2] + "="
        if kept == "":
            return encode(words, f"{first}<call>4</call>1;1;#1<eos>")
        rest = solve(question)
        return encode(words, (rest[len(kept) :] if rest.startswith(kept) else ";#1") + "<eos>")

    return ScriptedEngine(words, script, name="student", max_context=200)


def teacher_engine(words, fails_on=lambda text: False):
    def script(context):
        text = words.decode(context)
        if fails_on(text):
            return EngineError("The teacher is away; start it again.")
        question = text[: text.index("=") + 1]
        return encode(words, solve(question)[len(text) - len(question) :] + "<eos>")

    return ScriptedEngine(words, script, name="teacher", max_context=200)


def run(
    path,
    names=METHODS,
    rows=None,
    settings=SETTINGS,
    teacher=None,
    samples=1,
    words=None,
    has_teacher=True,
    shard=(0, 1),
    wrap=lambda engine: engine,
):
    words = words or vocabulary()
    student = wrap(student_engine(words))
    teacher = (teacher or teacher_engine(words)) if has_teacher else None
    rows = problems("test", 12, 0) if rows is None else rows
    asked = build_problems("arithmetic", rows, PromptBuilder(words.tokenizer, teacher), student, 20, 60)
    with AnswerFile(path, settings) as answers, Grader("#") as grader:
        methods = load_methods(names)
        options = {"samples": samples, "has_progress": False, "shard": shard}
        evaluate(methods, asked, student, teacher, CONFIG, grader, answers, **options)
    return read_run(path), student, teacher


def of(run, method):
    return [answer for answer in run.answers if answer.method == method]
