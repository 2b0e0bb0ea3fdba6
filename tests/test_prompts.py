"""Prompts of a run: rendered as ever, and tokenized once."""

import re

import pytest
from helpers.serving import pair_of
from helpers.tokenizers import byte_level, characters, llama2

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
    prompts.use_teacher(teacher)
    for _ in range(2):
        built = [prompts.build(problem) for problem in problems]
        assert built == [PromptBuilder(byte_level(), teacher, **options).build(problem) for problem in problems]
        assert [prompt.student for prompt in built] == first and built[0].teacher
    assert student.asked == ["Q: 1+1", "2+2"]


LLAMA_3_2 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "Today: {{ date_string }} {{ messages[0]['content'] }}"
)


def test_a_template_that_reads_the_clock_is_named_once_with_its_remedy(caplog):
    tokenizer = byte_level()
    tokenizer.chat_template = LLAMA_3_2
    fixed = PromptBuilder(tokenizer, chat_template_kwargs={"date_string": "01 Jan 2026"})
    assert tokenizer.decode(fixed.student_ids("Q")) == "Today: 01 Jan 2026 Q" and not caplog.records
    for _ in range(2):
        said = tokenizer.decode(PromptBuilder(tokenizer).student_ids("Q"))
        assert re.fullmatch(r"Today: \d\d \w{3} 20\d\d Q", said) and "26 Jul 2024" not in said
    (warned,) = caplog.messages
    assert "reads the clock" in warned and 'chat_template_kwargs: {date_string: "01 Jan 2026"}' in warned
    tokenizer.chat_template = "{{ strftime_now('%Y') }}{{ messages[0]['content'] }}"
    PromptBuilder(tokenizer).student_ids("Q")
    assert "save its tokenizer with a template that names a day" in caplog.messages[-1]


def beginning(kind):
    """A tokenizer that begins every text with `<bos>`."""
    tokenizer = kind()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.add_bos_token = True
    return tokenizer


@pytest.mark.parametrize("theirs", [characters, lambda: beginning(characters), None])
@pytest.mark.parametrize("mine", [byte_level, llama2])
def test_the_students_beginning_is_not_words_to_a_teacher(mine, theirs):
    student = beginning(mine)
    teacher = None if theirs is None else theirs()
    engine = ScriptedEngine(teacher and Vocabulary(teacher), lambda context: [])
    pair = pair_of(ScriptedEngine(Vocabulary(student), lambda context: []), engine)
    wanted = "Hi" if teacher is None else teacher("Hi")["input_ids"]
    ids = [student.bos_token_id, *student("Hi", add_special_tokens=False)["input_ids"]]
    for prompt in (ids, [student.bos_token_id, *ids], "<bos>Hi", "Hi"):
        assert pair.complete(prompt).teacher == wanted, prompt
    alone = pair.complete([student.bos_token_id]).teacher
    assert alone == ("" if teacher is None else teacher("")["input_ids"] or [teacher.eos_token_id])
