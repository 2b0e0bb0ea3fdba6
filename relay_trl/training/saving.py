"""What both trainers write beside the weights: the relay config, a model card, and the mark of a whole checkpoint.

Overrides methods of transformers' trainer that are not documented.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors import SafetensorError

from ..data.registry import SOURCES
from ..hub.model_card import write_model_card
from ..options import PromptFields
from ..relay_config import RelayRecord, origin_of
from . import checkpoints
from .lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, save_merged

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

_SHARED = (
    "open_tag close_tag prompt_template system_prompt is_chat answer_marker max_calls max_call_tokens teacher "
    "teacher_temperature max_completion_length reward is_ended_by_teacher"
).split()
"""Fields of the same name in the run's config and in the record."""


_WRITING = ("PytorchStreamWriter", "inline_container", "iostream")
"""Words in the errors of `torch.save` when a file cannot be written."""


class RelaySavingMixin(_Trainer):
    """Adds `relay_config.json` and a model card to every saved model. It comes before TRL's trainer in the bases.

    Attributes:
        training_set (`str`, *optional*): name of the training set, for the card; set by the recipe.
    """

    _stage = "grpo"
    training_set: str | None = None
    _is_merged = False

    @cached_property
    def _record(self) -> RelayRecord:  # made once, because the repository's commit may change during the run
        args: PromptFields = self.args
        values = {name: getattr(args, name) for name in _SHARED if hasattr(args, name)}
        return RelayRecord(
            **values,
            chat_template_kwargs=args.prompt_options()["chat_template_kwargs"],
            student_base=origin_of(self.model.config._name_or_path),
            stage=self._stage,
            training_set=self.training_set,
            seed=args.seed,
        )

    def relay_record(self) -> RelayRecord:
        """The relay config with the current step."""
        return replace(self._record, steps=self.state.global_step)

    def _write_card(self, folder: str, model_name: str | None = None, dataset_name: str | None = None, tags=()):
        name = dataset_name or self.training_set
        write_model_card(
            folder,
            self.relay_record(),
            model_name,
            dataset_name=SOURCES[name].hub_id if name in SOURCES else name,
            log_history=self.state.log_history,
            tags=[*self._tag_names, *tags],
            repo_id=self.hub_model_id,
            is_adapter=isinstance(self.model, PeftModel) and not self._is_merged,
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None):
        super()._save(output_dir, state_dict)
        self._write_card(output_dir or self.args.output_dir)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As [`~transformers.Trainer.train`]; `"auto"` goes on from the newest whole checkpoint, if there is one, and `None`
        from where the config says, which has found it already.
        """
        folder = self.args.resume_from_checkpoint
        if resume_from_checkpoint is not None:
            folder = checkpoints.find_checkpoint(resume_from_checkpoint, self.args.output_dir)
        if folder is not None:
            checkpoints.check_fits(folder, self.model, self.args.world_size)
        return super().train(resume_from_checkpoint=folder, **kwargs)

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            (folder / checkpoints.MARK).unlink(missing_ok=True)  # of an earlier run, whose files are overwritten
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none is removed before this is whole
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITING):
                raise
            raise OSError(
                f"The checkpoint of step {self.state.global_step} could not be written to {folder} ({error}); make room, and "
                "resume with resume_from_checkpoint: auto, which skips the incomplete one."
            ) from error
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero() and folder.is_dir():
            if not self.args.save_only_model:
                checkpoints.mark_whole(folder, self.model, self.args.world_size, self.is_deepspeed_enabled)
            checkpoints.drop_old(folder, limit, self.state.best_model_checkpoint)

    def save_student(self):
        """Writes the result of the run to `output_dir`: model or adapter, tokenizer, relay config and card; merged if `merge_adapter`."""
        folder = self.args.output_dir
        self.save_model(folder)
        if self.args.merge_adapter and isinstance(self.model, PeftModel):
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                is_quantized = getattr(self.model.get_base_model(), "is_quantized", False)
                dtype = torch.bfloat16 if is_quantized else self.model.dtype
                save_merged(folder, folder, dtype, trust_remote_code=self.args.trust_remote_code)
                for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                    (Path(folder) / name).unlink()
                self._is_merged = True  # from here on, what is pushed is not an adapter
                self._write_card(folder)
            self.accelerator.wait_for_everyone()

    def finish(self):
        """Writes what a run leaves in `output_dir`, the student and the trainer's state, and pushes it if `push_to_hub` is set."""
        self.save_student()
        self.save_state()
        if self.args.push_to_hub:
            self.push_to_hub()

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None):
        if self.is_world_process_zero():
            self._write_card(
                self.args.output_dir, model_name, dataset_name, [tags] if isinstance(tags, str) else tags or ()
            )
