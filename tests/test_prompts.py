"""Prompts of a run: rendered as ever, and tokenized once."""

from helpers.tokenizers import byte_level

from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.prompts import PromptBuilder, RunPrompts
from relay_trl.vocabulary import Vocabulary


class Counting:
    """A tokenizer that writes down what it is asked."""

    def __init__(self):
        self.tokenizer, self.asked = byte_level(), []
        self.chat_template = None

    def __call__(self, text):
        self.asked.append(text)
        return self.tokenizer(text)


def test_a_run_tokenizes_each_problem_once_for_each_model():
    student, teacher = Counting(), ScriptedEngine(Vocabulary(byte_level()), lambda context: [])
    options = {"template": "Q: {problem}"}
    prompts = RunPrompts(student, **options)
    problems = ["1+1", [{"role": "user", "content": "2+2"}]]
    first = [prompts.student_ids(problem) for problem in problems]
    prompts.teacher = teacher
    for _ in range(2):
        built = [prompts.build(problem) for problem in problems]
        assert built == [PromptBuilder(byte_level(), teacher, **options).build(problem) for problem in problems]
        assert [prompt.student for prompt in built] == first and built[0].teacher
    assert student.asked == ["Q: 1+1", "2+2"]
