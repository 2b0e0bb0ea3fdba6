"""Which problems a training or a filter uses, and which of them are for validation.

Owns the options and the split; `sources.py` reads the rows.
"""

import random
from dataclasses import dataclass, field

from .decontamination import decontaminate
from .registry import REPORTED
from .sources import load_rows

_AND = " + "


@dataclass
class DataConfig:
    """Which problems a run uses.

    Args:
        dataset (`str`): a registered set (see `data/registry.py`), `"arithmetic"`, `"lookups"`, a file, or a Hub dataset.
            Several are put together; `source` then says where a row is from.
        dataset_weights (`list[float]`, *optional*): share of the rows that come from each of several sets, as many rows as
            there are without taking one twice; `None` takes all rows of each.
        dataset_config (`str`, *optional*): config of a Hub dataset.
        dataset_streaming (`bool`, defaults to `False`): take the first `dataset_size` rows (of each set) and read no further,
            for sets of any size.
        data_dir (`str`, *optional*): folder with local copies of registered sets; `None` loads them from the Hub.
        dataset_split (`str`, *optional*): of a Hub dataset or of the arithmetic task.
        dataset_size (`int`, *optional*): number of rows to use, chosen by `dataset_seed`; `None` uses all.
        dataset_seed (`int`, defaults to `0`): chooses the rows of dataset_size and validation_size.
        problem_column (`str`): column of the problem in a file or Hub dataset.
        answer_column (`str`): column of the gold answer.
        decontaminate (`bool`, defaults to `False`): leave out rows that share a problem with one of the paper's six
            benchmarks (see `data/decontamination.py`). The benchmarks come from `data_dir` or the Hub.
        validation (`str`, *optional*): the set to validate on; `None` splits `validation_size` rows off the training set.
        validation_split (`str`, *optional*): the same for the validation set.
        validation_size (`int`, defaults to `256`): number of validation rows.
    """

    dataset: str = field(metadata={"nargs": "+"})
    dataset_weights: list[float] | None = None
    dataset_config: str | None = None
    dataset_streaming: bool = False
    data_dir: str | None = None
    dataset_split: str | None = None
    dataset_size: int | None = None
    dataset_seed: int = 0
    problem_column: str = "problem"
    answer_column: str = "answer"
    decontaminate: bool = False
    validation: str | None = None
    validation_split: str | None = None
    validation_size: int = 256

    def __post_init__(self):
        if isinstance(self.dataset, list):
            self.dataset = _AND.join(self.dataset)
        weights = self.dataset_weights
        if weights is not None and (len(weights) != len(self.sets) or not all(w > 0 for w in weights)):
            raise ValueError(
                f"dataset_weights is {weights} for {len(self.sets)} sets; give one number above 0 for each of {self.dataset}."
            )
        if self.dataset_streaming and self.dataset_size is None:
            raise ValueError("dataset_streaming is set and dataset_size is not; say how many rows to take.")
        for name in ("dataset_size", "validation_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        reported = [name for name in (*self.sets, self.validation) if name in REPORTED]
        if reported:
            raise ValueError(
                f"{reported[0]!r} is a benchmark that results are reported on; training and choosing "
                f"checkpoints must not see it. Use another set than {', '.join(REPORTED)}."
            )

    @property
    def sets(self) -> list[str]:
        """The names in `dataset`."""
        return self.dataset.split(_AND)

    def load(self) -> list[dict]:
        """The training rows, see [`~relay_trl.data.sources.load_rows`], without those of benchmarks where that is asked for.

        Raises:
            ValueError: a set has fewer rows than its weight asks of it.
        """
        sets = self.sets
        limit = self.dataset_size if len(sets) == 1 or self.dataset_streaming else None
        parts = [
            load_rows(
                name,
                self.data_dir,
                self.dataset_split,
                limit,
                self.dataset_seed,
                self.problem_column,
                self.answer_column,
                self.dataset_config,
                self.dataset_streaming,
            )
            for name in sets
        ]
        rows = parts[0] if len(sets) == 1 else self._mixed(parts)
        return decontaminate(rows, self.dataset, self.data_dir) if self.decontaminate else rows

    def _mixed(self, parts: list[list[dict]]) -> list[dict]:
        rng = random.Random(self.dataset_seed)
        named = [[{**row, "source": name} for row in part] for name, part in zip(self.sets, parts, strict=True)]
        if self.dataset_weights is not None:
            shares = [weight / sum(self.dataset_weights) for weight in self.dataset_weights]
            most = min(len(part) / share for part, share in zip(named, shares, strict=True))
            total = int(most) if self.dataset_size is None else self.dataset_size
            counts = [round(total * share) for share in shares]
            for name, part, count in zip(self.sets, named, counts, strict=True):
                if count > len(part):
                    raise ValueError(
                        f"{name} has {len(part)} rows, and dataset_size={total} with dataset_weights={self.dataset_weights} "
                        f"asks {count} of it; lower dataset_size to {int(most)}."
                    )
            named = [rng.sample(part, count) for part, count in zip(named, counts, strict=True)]
        columns = dict.fromkeys(key for part in named for row in part[:1] for key in row)
        rows = [{**dict.fromkeys(columns), **row} for part in named for row in part]
        rng.shuffle(rows)
        return rows if self.dataset_weights is not None else rows[: self.dataset_size]

    def load_with_validation(self) -> tuple[list[dict], list[dict]]:
        """Training rows and validation rows, without common rows.

        Raises:
            ValueError: too few rows are left for training.
        """
        rows = self.load()
        if self.validation is not None:
            validation = load_rows(
                self.validation,
                self.data_dir,
                self.validation_split,
                self.validation_size,
                self.dataset_seed,
                self.problem_column,
                self.answer_column,
            )
        else:
            random.Random(self.dataset_seed).shuffle(rows)
            rows, validation = rows[self.validation_size :], rows[: self.validation_size]
        seen = {repr(row["prompt"]) for row in validation}
        training = [row for row in rows if repr(row["prompt"]) not in seen]
        if not training:
            raise ValueError(
                f"{self.dataset} has no row left to train on beside its {len(validation)} validation rows; lower "
                "validation_size or name another set as validation."
            )
        return training, validation
