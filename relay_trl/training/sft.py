"""The warm-up: supervised training on the student's own answers with inserted calls (paper, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback, set_seed
from trl import SFTTrainer

from ..vocabulary import Vocabulary
from .callbacks import LimitedWaiting, ProgressLines
from .config import RelaySFTConfig
from .lora import check_model_options, check_sharding, give_bias
from .saving import RelaySavingMixin
from .trackers import TrackerTables


class RelaySFTTrainer(RelaySavingMixin, SFTTrainer):
    """[`~trl.SFTTrainer`] on the rows of `build_warmup.py`: loss on exactly the tokens that the student sampled.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`]): the student.
        args ([`RelaySFTConfig`]).
        train_dataset ([`~datasets.Dataset`]): columns `prompt_ids`, `completion_ids`, `completion_mask` (1 for a token that has
            a loss, 0 for one of the teacher's) and `completion`.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): the student's tokenizer, call tokens included.
        eval_dataset ([`~datasets.Dataset`] or a `dict` of them, *optional*): rows of the same columns.
        callbacks, optimizers, peft_config, quantization_config: as [`~trl.SFTTrainer`] takes them. Its other arguments are
            for rows that are not tokens yet, or for other losses.

    Raises:
        ValueError: the rows were made with another tokenizer, or do not fit into `args.max_length`; `args.average_with_start` for
            an adapter or for weights that are split over processes.
    """

    _name = "RelaySFT"
    _tag_names = ["trl", "sft", "relay-trl"]
    _stage = "sft"
    args: RelaySFTConfig

    def __init__(
        self,
        model,
        args: RelaySFTConfig,
        train_dataset: Dataset,
        processing_class,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
    ):
        self._rows_vocabulary = Vocabulary(processing_class)
        check_sharding(peft_config, args)
        check_model_options(model, args, quantization_config)
        set_seed(args.seed)  # a new adapter is drawn before transformers sets the seed
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._checked(train_dataset, args),
            eval_dataset=self._checked(eval_dataset, args),
            processing_class=processing_class,
            callbacks=list(callbacks) if callbacks else None,
            optimizers=optimizers,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )
        is_split = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if args.average_with_start and (is_split or isinstance(self.model, PeftModel)):
            what = "DeepSpeed or FSDP splits the weights" if is_split else "an adapter is trained"
            raise ValueError(f"average_with_start is true, but {what}; it needs the whole weights. Leave it out.")
        give_bias(self.model)
        self.add_callback(LimitedWaiting)
        self.add_callback(ProgressLines)
        self.add_callback(TrackerTables(lambda: self.callback_handler.callbacks))

    def train(self, *args, **kwargs):
        """As [`~transformers.Trainer.train`]; with `average_with_start` the model then has the mean of both ends."""
        weights = list(self.model.parameters()) if self.args.average_with_start else []
        start = [weight.detach().clone() for weight in weights]  # a checkpoint is loaded further below
        output = super().train(*args, **kwargs)
        with torch.no_grad():
            for weight, before in zip(weights, start, strict=True):
                weight.lerp_(before.to(weight.device), 0.5)
        return output

    def _checked(self, rows: Any, args: RelaySFTConfig) -> Any:
        """Rows of `build_warmup.py`, or a `dict` of such, as TRL takes them."""
        if isinstance(rows, dict):
            return {name: self._checked(part, args) for name, part in rows.items()}
        if rows is None:
            return None
        check_rows(rows, self._rows_vocabulary, args)
        return rows.map(to_sft_row, remove_columns=rows.column_names)

    def evaluate(self, eval_dataset=None, *args, **kwargs):
        """As [`~trl.SFTTrainer.evaluate`]; rows that are given here are those of `build_warmup.py` too."""
        is_given = isinstance(eval_dataset, Dataset) and "labels" not in eval_dataset.column_names
        return super().evaluate(self._checked(eval_dataset, self.args) if is_given else eval_dataset, *args, **kwargs)


def to_sft_row(row: dict) -> dict[str, list[int]]:
    """A warm-up row as TRL takes it: labels are -100 (no loss) in the prompt and where the teacher wrote."""
    ids, mask = row["completion_ids"], row["completion_mask"]
    return {
        "input_ids": row["prompt_ids"] + ids,
        "labels": [-100] * len(row["prompt_ids"]) + [i if m else -100 for i, m in zip(ids, mask, strict=True)],
    }


def check_rows(rows: Dataset, vocabulary: Vocabulary, args: RelaySFTConfig):
    """Refuses rows that this student cannot have written, and rows that would be cut."""
    missing = {"prompt_ids", "completion_ids", "completion_mask", "completion"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{args.warmup_data} has no column {', '.join(sorted(missing))}; give warmup_data the file that "
            "recipes/build_warmup.py wrote."
        )
    for i, row in enumerate(rows.select(range(min(100, len(rows))))):
        ids, text = row["completion_ids"], row["completion"]
        # The end token is in the ids and not in the text. A model may have several; the tokenizer knows one of them
        if max(ids, default=0) >= vocabulary.size or text not in (vocabulary.decode(ids[:-1]), vocabulary.decode(ids)):
            raise ValueError(
                f"Row {i} of {args.warmup_data} does not fit the student's tokenizer: its token ids do not spell its text. "
                "Build the warm-up data with this student, and with the same tags and add_call_tokens."
            )
    longest = 0
    for i, row in enumerate(rows):
        ids, mask = row["completion_ids"], row["completion_mask"]
        longest = max(longest, len(row["prompt_ids"]) + len(ids))
        if len(mask) != len(ids) or not set(mask) <= {0, 1}:
            raise ValueError(
                f"Row {i} of {args.warmup_data} has {len(ids)} completion_ids and a completion_mask of {len(mask)} numbers; it "
                "must be one for each id, 1 (the student's, with a loss) or 0 (the teacher's). Build the warm-up data again."
            )
    if args.max_length is not None and longest > args.max_length:
        raise ValueError(
            f"The longest row of {args.warmup_data} has {longest} tokens, more than max_length={args.max_length}; raise "
            "max_length, or build the warm-up data with a smaller max_completion_length."
        )
