"""Small trainers on the arithmetic pair: a real model is trained, and a student and a teacher write planned texts.

Only generation is planned; loss, gradient and weights are those of the real model.
"""

import atexit
import tempfile
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from relay_trl.call_syntax import CallSyntax
from relay_trl.data.arithmetic import problems, solve
from relay_trl.engines.base import EngineError, Sampling
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer
from relay_trl.training.call_tokens import add_call_tokens, grow_embeddings
from relay_trl.vocabulary import Vocabulary

PAIR = Path(__file__).parents[2] / "data" / "arithmetic"
SYNTAX = CallSyntax()
WRONG = "#1000"  # no gold is that large
BROKEN = 9  # a call for so many tokens breaks the planned teacher
END = "\0"  # the end token in a plan


def load_tokenizer(has_call_tokens=True):
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "student")
    if has_call_tokens:
        add_call_tokens(tokenizer, SYNTAX)
    return tokenizer


@cache
def student_folder():
    """The shipped student with call tokens; TRL loads the reference model of a KL term from this folder too."""
    folder = tempfile.TemporaryDirectory(prefix="student-")
    atexit.register(folder.cleanup)
    tokenizer = load_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(PAIR / "student", dtype=torch.float32)
    grow_embeddings(model, tokenizer, len(tokenizer) - model.get_input_embeddings().weight.shape[0])
    model.save_pretrained(folder.name)
    tokenizer.save_pretrained(folder.name)
    return folder.name


def load_student():
    return AutoModelForCausalLM.from_pretrained(student_folder(), dtype=torch.float32)


# What a rollout does before its first call or its end; `{}` stands for the right answer
PLANS = {
    "right": "{}" + END,
    "wrong": WRONG + END,
    "call, right": "<call>5</call>",
    "call, wrong": "<call>2</call>",
    "call to the end": "<call>90</call>",
    "malformed, right": "<call></call>",
    "endless": "1" * 99,
    "call, broken": f"<call>{BROKEN}</call>",
    "words, call, broken": f"1+1=2;<call>{BROKEN}</call>",
}


class PlannedStudent(ScriptedEngine):
    """Follows the plan that `choose(problem, seed)` names; after a call it ends the answer as the plan says."""

    def __init__(self, tokenizer, choose):
        super().__init__(Vocabulary(tokenizer), lambda context: [])
        self.choose = choose
        self.seeds = []

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        problem, _, written = self.vocabulary.decode(context).partition("=")
        right = solve(problem + "=")
        if not written:
            self.seeds.append(sampling.seed)
            planned = PLANS[self.choose(problem + "=", sampling.seed)].format(right)
        elif written == "<call></call>":
            planned = right + END
        elif "<call>5</call>" in written:
            planned = right[len(SYNTAX.remove(written)) :] + END
        else:
            planned = WRONG + END
        text, _, rest = planned.partition(END)
        table = self.vocabulary.tokenizer.get_added_vocab()
        ids = []
        for piece in text.replace("<", "\1<").replace(">", ">\1").split("\1"):
            ids += [table[piece]] if piece in table else self.vocabulary.encode(piece)
        ids += [self.vocabulary.eos_id] if END in planned else []
        # an engine of its own for each request, as many are under way at once
        return await ScriptedEngine(self.vocabulary, lambda context: ids).generate(context, max_tokens, stop, sampling)


class PlannedTeacher(ScriptedEngine):
    """Continues with the right answer; a call for `BROKEN` tokens fails."""

    def __init__(self):
        tokenizer = load_tokenizer(has_call_tokens=False)
        super().__init__(Vocabulary(tokenizer), self._continue)

    def _continue(self, context):
        problem, _, written = self.vocabulary.decode(context).partition("=")
        return [*self.vocabulary.encode(solve(problem + "=")[len(written) :]), self.vocabulary.eos_id]

    async def generate(self, context, max_tokens, stop=(), sampling=Sampling()):
        if max_tokens == BROKEN:
            raise EngineError("The teacher is out for lunch.")
        return await super().generate(context, max_tokens, stop, sampling)


def in_turn(*plans):
    """Gives the rollouts of each problem these plans, one after the other, over and over."""
    asked = {}

    def choose(problem, seed):
        asked[problem] = asked.get(problem, -1) + 1
        return plans[asked[problem] % len(plans)]

    return choose


def rows(size=8, split="train"):
    return Dataset.from_list(problems(split, size, seed=3))


SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "answer_marker": "#",
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 1,
}
"""Options of a short training on the CPU."""


def grpo_config(folder, **fields):
    """Two prompts of four rollouts a step, in one batch, on the CPU."""
    return RelayGRPOConfig(
        **{
            **SMALL,
            "output_dir": str(folder),
            "teacher": str(PAIR / "teacher"),
            "num_generations": 4,
            "per_device_eval_batch_size": 8,
            "num_generations_eval": 2,
            "max_prompt_length": 16,
            "max_completion_length": 40,
            "lr_scheduler_type": "constant",
            **fields,
        }
    )


def grpo_trainer(args, choose=None, teacher=None, train=None, **kwargs):
    """A trainer whose student follows plans; without `choose`, the model itself generates."""
    tokenizer = load_tokenizer()
    trainer = RelayGRPOTrainer(
        model=load_student(),
        args=args,
        train_dataset=rows() if train is None else train,
        processing_class=tokenizer,
        teacher=teacher or PlannedTeacher(),
        **kwargs,
    )
    if choose is not None:
        trainer._engines["student"] = PlannedStudent(tokenizer, choose)
    return trainer


def weights_of(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def are_equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
