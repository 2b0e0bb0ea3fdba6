"""The router of CITER: a small network that decides from the student's hidden state whether to keep its token.

Owns the network, its training and its file. `labels.py` makes the labels, `decoding.py` uses the scores.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import mannwhitneyu
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

WEIGHTS_NAME = "citer_router.safetensors"
RECORD_NAME = "citer_router.json"
FORMAT = 1


class Router(nn.Module):
    """An MLP on the student's last-layer hidden state at the last position, h numbers: h -> 2h (batch norm, ReLU, dropout)
    -> h (dropout) -> 1.

    Args:
        hidden_size (`int`): h, the student's.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size
        wide = 2 * hidden_size
        self.layers = nn.Sequential(
            *(nn.Linear(hidden_size, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.Linear(wide, hidden_size), nn.Dropout(0.1), nn.Linear(hidden_size, 1)),
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits, shape (N,), of states of shape (N, h)."""
        return self.layers(states)[:, 0]

    @torch.no_grad()
    def score(self, states: torch.Tensor) -> torch.Tensor:
        """P(keep the student's token), shape (N,), in evaluation mode."""
        was_training = self.training
        self.eval()
        scores = self(states.to(next(self.parameters()).dtype)).sigmoid()
        self.train(was_training)
        return scores


@dataclass
class RouterRecord:
    """The record of a trained router, written beside its weights.

    Args:
        student (`str`): the model whose hidden states it reads.
        hidden_size (`int`).
        threshold (`float`): the default: below this score a token is the teacher's.
        teacher (`str`, *optional*): the teacher that the labels were made with.
        rounds (`list[dict]`): counts of labels and losses, one entry for each round.
        thresholds (`dict[str, float]`): thresholds by the share of held-out positions below them.
    """

    student: str
    hidden_size: int
    threshold: float
    teacher: str | None = None
    rounds: list[dict] = field(default_factory=list)
    thresholds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """The result of a router's training: epochs up to the best one, and on the held-out questions the loss, the share of
    right labels at 0.5, and the probability that a kept token gets a higher score than a replaced one (`None` without both).
    """

    epochs: int
    loss: float
    accuracy: float
    ranking: float | None


def split_by_question(questions: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Which positions are held out, shape (N,): all or none of a question, for about `share` of the questions."""
    names = questions.unique()
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    held_out = names[order[: max(1, round(share * len(names)))]]
    return torch.isin(questions, held_out)


def train_router(
    states: torch.Tensor,
    labels: torch.Tensor,
    questions: torch.Tensor,
    seed: int = 0,
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    max_epochs: int = 100,
    patience: int = 5,
    held_out_share: float = 0.2,
) -> tuple[Router, Fit, torch.Tensor]:
    """Trains a router with binary cross-entropy and Adam. The weights of the best epoch are kept.

    Args:
        states (`torch.Tensor` of shape (N, h)), labels (`torch.Tensor` of shape (N,), 1 = keep the student's token).
        questions (`torch.Tensor` of shape (N,)): the question of each position. The split is by question, because positions
            of one answer are similar.
        patience (`int`, defaults to `5`): training ends after so many epochs without a better held-out loss.

    Returns:
        `tuple[Router, Fit, torch.Tensor]`: the router, the result, and which positions were held out.

    Raises:
        ValueError: there are fewer than two questions, or labels of one kind only.
    """
    if len(questions.unique()) < 2 or len(labels.unique()) < 2:
        raise ValueError(
            f"There are {len(questions.unique())} questions, with {int(labels.sum())} of {len(labels)} positions to be kept; "
            "a router needs several questions and positions of both kinds: more questions, or another pair of models."
        )
    held_out = split_by_question(questions, held_out_share, seed)
    train_x, train_y = states[~held_out].float(), labels[~held_out].float()
    test_x, test_y = states[held_out].float(), labels[held_out].float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = Router(states.shape[1])
        optimizer = torch.optim.Adam(router.parameters(), lr=learning_rate)
        best_loss, best_epoch, best = float("inf"), 0, router.state_dict()
        for epoch in range(1, max_epochs + 1):
            router.train()
            for part in torch.randperm(len(train_x)).split(batch_size):
                if len(part) < 2:  # batch norm needs two to have a spread
                    continue
                optimizer.zero_grad()
                binary_cross_entropy_with_logits(router(train_x[part]), train_y[part]).backward()
                optimizer.step()
            router.eval()
            with torch.no_grad():
                loss = binary_cross_entropy_with_logits(router(test_x), test_y).item()
            if loss < best_loss:
                best_loss, best_epoch, best = loss, epoch, copy.deepcopy(router.state_dict())
            elif epoch - best_epoch >= patience:
                break
    router.load_state_dict(best)
    router.eval()
    scores = router.score(test_x)
    accuracy = ((scores >= 0.5) == (test_y == 1)).float().mean().item()
    return router, Fit(best_epoch, best_loss, accuracy, _ranking(scores, test_y)), held_out


def _ranking(scores: torch.Tensor, labels: torch.Tensor) -> float | None:
    """The area under the ROC curve; ties count half."""
    kept, replaced = scores[labels == 1].numpy(), scores[labels == 0].numpy()
    if not len(kept) or not len(replaced):
        return None
    return float(mannwhitneyu(kept, replaced, method="asymptotic").statistic) / (len(kept) * len(replaced))


def thresholds_for(scores: torch.Tensor, shares: Sequence[float]) -> dict[str, float]:
    """For each share, the threshold below which this share of the scores, shape (N,), lies."""
    wanted = torch.quantile(scores.double(), torch.tensor(shares, dtype=torch.double))
    return {f"{share:g}": round(value, 6) for share, value in zip(shares, wanted.tolist(), strict=True)}


def save_router(router: Router, record: RouterRecord, folder: str | Path):
    """Writes weights and record into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in router.state_dict().items()}, folder / WEIGHTS_NAME)
    text = json.dumps({"format": FORMAT, **asdict(record)}, indent=2) + "\n"
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")


def load_router(folder: str | Path) -> tuple[Router, RouterRecord]:
    """The router that [`save_router`] wrote.

    Raises:
        FileNotFoundError: there is none in the folder.
        ValueError: it has another format, or is broken.
    """
    record_path, weights_path = Path(folder) / RECORD_NAME, Path(folder) / WEIGHTS_NAME
    if not record_path.is_file() or not weights_path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {RECORD_NAME} with {WEIGHTS_NAME}; train a router with recipes/train_citer.py and give its "
            "output_dir."
        )
    try:
        data = json.loads(record_path.read_text(encoding="utf-8"))
        if data.pop("format") != FORMAT:
            raise ValueError("another format")
        record = RouterRecord(**data)
        router = Router(record.hidden_size)
        router.load_state_dict(load_file(weights_path))
    except Exception as error:  # the reader of a cut file can raise anything
        raise ValueError(f"The router in {folder} cannot be read ({error}); train it again.") from error
    return router.eval(), record
