"""What both trainers put beside the weights: the relay's config in every checkpoint, and a model card made from the run."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from peft import PeftModel

from .. import hub
from ..data.sources import SOURCES
from ..options import PromptFields

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

_SHARED = (
    "open_tag close_tag prompt_template system_prompt is_chat answer_marker max_calls max_call_tokens teacher "
    "teacher_temperature max_completion_length reward is_ended_by_teacher"
).split()
"""Fields of the same name in the run's config and in the record."""


class RelaySavingMixin(_Trainer):
    """Adds `relay_config.json` and our model card to every saved model; stands before TRL's trainer in the bases.

    Attributes:
        training_set (`str`, *optional*): what the run is trained on, for the card; set by the recipe.
    """

    _stage = "grpo"
    training_set: str | None = None

    @cached_property
    def _record(self) -> hub.RelayRecord:  # once, for the repository's commit may move while the run goes on
        args: PromptFields = self.args
        values = {name: getattr(args, name) for name in _SHARED if hasattr(args, name)}
        return hub.RelayRecord(
            **values,
            chat_template_kwargs=args.prompt_options()["chat_template_kwargs"],
            student_base=hub.origin_of(self.model.config._name_or_path),
            stage=self._stage,
            training_set=self.training_set,
            seed=args.seed,
        )

    def relay_record(self) -> hub.RelayRecord:
        """Everything that a user of the student must know, as of now."""
        return replace(self._record, steps=self.state.global_step)

    def _write_card(self, folder: str, model_name: str | None = None, dataset_name: str | None = None, tags=()):
        name = dataset_name or self.training_set
        hub.write_model_card(
            folder,
            self.relay_record(),
            model_name,
            dataset_name=SOURCES[name].hub_id if name in SOURCES else name,
            log_history=self.state.log_history,
            tags=[*self._tag_names, *tags],
            repo_id=self.hub_model_id,
            is_adapter=isinstance(self.model, PeftModel),
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None):
        super()._save(output_dir, state_dict)
        self._write_card(output_dir or self.args.output_dir)

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None):
        if self.is_world_process_zero():
            self._write_card(
                self.args.output_dir, model_name, dataset_name, [tags] if isinstance(tags, str) else tags or ()
            )
