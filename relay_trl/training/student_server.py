"""The student's own vLLM server (`vllm_mode: server`): what is checked before the run, and how it gets new weights.

Owns vLLM's development endpoints and the order of a weight sync: every process waits, the server is paused, takes the weights, forgets its
cached prefixes and goes on, and only then does a process ask it again. The weights go over NCCL, as TRL sends them, or through a
folder that both sides see; nothing else differs between the two.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import requests
import torch
from safetensors.torch import save_file
from trl import GRPOTrainer
from trl.generation.vllm_client import VLLMClient

from ..cli.launch import from_first_process
from ..engines.base import EngineError
from ..redaction import mask_credentials
from .config import RelayGRPOConfig
from .vllm_weights import copied

_RESUME = "go on with resume_from_checkpoint: auto"


class StudentServer(VLLMClient):
    """TRL's client, which also pauses the server, sends weights through a folder, and knows the server again.

    Args:
        args ([`RelayGRPOConfig`]).
        given (`Any`): what TRL gives its client.

    Raises:
        EngineError: no server within `vllm_server_timeout` seconds, or one without vLLM's development endpoints.
        ValueError: the server was started with options that do not fit the run.
    """

    def __init__(self, args: RelayGRPOConfig, **given: Any):
        self.args = args
        self.shown = mask_credentials(server_url(args))
        self.instance: str | None = None
        try:
            super().__init__(**given)
            model = self.get_server_info()["model_config"]
            mode, room = model["logprobs_mode"], model["max_model_len"]
        except Exception as error:  # TRL raises plain ones
            raise EngineError(f"The student's server {self.shown} cannot be used ({_reason(error)}).") from error
        if args.vllm_importance_sampling_correction and mode != "processed_logprobs":
            raise ValueError(
                f"The student's server {self.shown} gives {mode}, and the correction for its probabilities needs those that it "
                "draws from; start it with --logprobs-mode processed_logprobs."
            )
        needed = args.max_prompt_length + args.max_completion_length
        if room < needed:
            raise ValueError(
                f"The student's server {self.shown} has room for {room} tokens, but max_prompt_length={args.max_prompt_length} "
                f"and max_completion_length={args.max_completion_length} need {needed}; start it with a larger --max-model-len."
            )
        self._post_alone("resume")  # a run that was killed in a sync has left it paused

    def init_communicator(self, device: torch.device | str | int = 0):
        """Joins the server's NCCL group, unless weights go through a folder."""
        if self.args.vllm_weights_folder is None:
            super().init_communicator(device)

    def update_named_params(self, metadata: list, named_params: Iterator[tuple[str, torch.Tensor]]):
        """Hands over all weights; the server has them when this returns."""
        if self.args.vllm_weights_folder is None:
            super().update_named_params(metadata, named_params)
            return
        weights = copied(named_params)
        folder = Path(self.args.vllm_weights_folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "new")
        os.replace(folder / "new", folder / "model.safetensors")  # the server may still have the old file open
        self._post_alone("collective_rpc", json={"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})

    def reset_prefix_cache(self):
        """Forgets the prefixes that were computed with the old weights.

        Raises:
            RuntimeError: the server keeps them.
        """
        if not self._post_alone("reset_prefix_cache").json().get("success"):
            raise RuntimeError("it keeps its prefix cache, as something still uses it")

    def pause(self):
        """Ends what is under way, and takes up nothing new."""
        self._post_alone("pause", params={"mode": "abort"})

    def resume(self):
        """Takes up requests again, with the weights that it has now, and remembers which server this is."""
        self._post_alone("resume")
        self.instance = self.get_server_info()["instance_id"]

    def check_same(self):
        """Refuses rollouts of a server that was started anew since it got its weights; one that is gone has given none.

        Raises:
            RuntimeError: it is another one.
        """
        try:
            # Asked once: TRL's session would try a server that is gone for a minute
            found = requests.get(f"{self.base_url}/server_info", params={"config_format": "json"}, timeout=30)
            instance = found.json()["vllm_config"]["instance_id"]
        except (requests.RequestException, KeyError):
            return
        if instance != self.instance:
            raise RuntimeError(
                f"The student's server {self.shown} was started anew while rollouts were drawn, so some of them are of its first "
                f"weights; {_RESUME}."
            )

    def _post_alone(self, path: str, **options: Any) -> requests.Response:
        """One request that is not sent again: a second reload could meet the first."""
        answer = requests.post(f"{self.base_url}/{path}", timeout=self.args.vllm_server_timeout, **options)
        if answer.status_code != 200:
            raise RuntimeError(f"/{path} answered with status {answer.status_code}: {answer.text[:200]}")
        return answer


def check_reachable(args: RelayGRPOConfig):
    """Refuses a server that this process cannot reach; every process asks it.

    Raises:
        EngineError: naming its address.
    """
    address = server_url(args)
    try:
        requests.get(f"{address}/health", timeout=min(10.0, args.vllm_server_timeout)).raise_for_status()
    except requests.ConnectionError:
        return  # TRL waits `vllm_server_timeout` for one that is being started, and has a sentence for the end of it
    except requests.RequestException as error:
        raise EngineError(f"{mask_credentials(address)} is no healthy vLLM server ({type(error).__name__}).") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def server_url(args: RelayGRPOConfig) -> str:
    """The address of the student's server."""
    address = args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    return address.rstrip("/")


def sync_through_server(trainer: GRPOTrainer):
    """Puts TRL's weight sync between a pause and a resume of the server, and lets every process wait for its end.

    TRL's own generation waits in the gather of its prompts, which a `rollout_func` does not have. Can go when TRL waits after its sync.
    """
    generation, accelerator = trainer.vllm_generation, trainer.accelerator
    original = generation.sync_weights

    def on_first(what: str, work: Callable[[], Any]):
        def told():
            try:
                work()
            except Exception as error:  # TRL's client raises plain ones
                server = generation.vllm_client.shown
                raise EngineError(
                    f"The student's server {server} could not {what} ({_reason(error)}); start it again, and {_RESUME}."
                ) from error

        from_first_process(accelerator, told)

    def sync_weights():
        accelerator.wait_for_everyone()  # a process that is late may still be drawing
        on_first("be paused", lambda: generation.vllm_client.pause())
        failed: list[Exception] = []
        try:
            original()  # all take part, as parameters may have to be gathered
        except Exception as error:
            if not accelerator.is_main_process:
                raise
            failed.append(error)

        def finish():
            if failed:
                raise failed[0]
            generation.vllm_client.resume()

        on_first("take its weights", finish)

    generation.sync_weights = sync_weights


def check_same_server(trainer: GRPOTrainer):
    """Ends the run on every process if the server is another one than at the last sync."""
    from_first_process(trainer.accelerator, lambda: trainer.vllm_generation.vllm_client.check_same())


def client_of(args: RelayGRPOConfig) -> Callable[..., StudentServer]:
    """What stands in for TRL's client while a trainer is made."""
    return partial(StudentServer, args)
