"""What a server of the student's own is asked before a run and around a weight sync, against a stand-in over HTTP."""

import pytest
import torch
from fastapi import FastAPI, HTTPException, Request
from helpers.served import served
from helpers.trainers import grpo_config
from safetensors.torch import load_file

pytest.importorskip("vllm")  # TRL's client needs it

from relay_trl.engines.base import EngineError  # noqa: E402
from relay_trl.training.student_server import StudentServer, check_reachable  # noqa: E402


class StandIn:
    """Knows vLLM's endpoints for development; `told` is what was asked of it, `changes` what it answers instead."""

    def __init__(self):
        self.told, self.changes = [], {}
        self.model = {"logprobs_mode": "processed_logprobs", "max_model_len": 512}
        app = self.app = FastAPI()
        answers = {
            "health": lambda: {},
            "v1/models": lambda: {"data": [{"id": "tiny"}]},
            "server_info": lambda: {"vllm_config": {"model_config": self.model, "instance_id": "first"}},
            "reset_prefix_cache": lambda: {"success": True},
        }

        @app.api_route("/{path:path}", methods=["GET", "POST"])
        async def answer(path: str, request: Request):
            body = await request.body()
            if request.method == "POST":
                self.told.append((path, await request.json() if body else dict(request.query_params)))
            found = self.changes.get(path) or answers.get(path, dict)()
            if isinstance(found, int):
                raise HTTPException(found, "no")
            return found


@pytest.fixture
def server():
    server = StandIn()
    with served(server.app) as server.url:
        yield server


def client_of(server, folder, **fields):
    fields = {"vllm_server_base_url": server.url, "vllm_weights_folder": str(folder / "weights"), **fields}
    args = grpo_config(folder, use_vllm=True, vllm_mode="server", **fields)
    return StudentServer(args, base_url=server.url)


def test_a_sync_pauses_hands_over_all_weights_and_goes_on(server, tmp_path):
    client = client_of(server, tmp_path)
    assert server.told == [("resume", {})]  # it may still be paused
    weight = torch.arange(6.0).reshape(2, 3)
    client.pause()
    client.update_named_params([], iter([("model.embed_tokens.weight", weight), ("model.norm.weight", weight[0])]))
    client.reset_prefix_cache()
    client.resume()
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "weights")}}
    assert server.told[1:] == [
        ("pause", {"mode": "abort"}),
        ("collective_rpc", reload),
        ("reset_prefix_cache", {}),
        ("resume", {}),
    ]
    given = load_file(tmp_path / "weights" / "model.safetensors")
    assert set(given) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}  # a tied head is copied
    assert torch.equal(given["lm_head.weight"], weight)


def test_what_the_server_refuses_is_an_error(server, tmp_path):
    client = client_of(server, tmp_path)
    server.changes = {"reset_prefix_cache": {"success": False}, "pause": 500}
    with pytest.raises(RuntimeError, match="it keeps its prefix cache, as something still uses it"):
        client.reset_prefix_cache()
    with pytest.raises(RuntimeError, match="/pause answered with status 500"):
        client.pause()


def test_rollouts_of_a_server_that_was_started_anew_are_refused(server, tmp_path):
    client = client_of(server, tmp_path)
    client.resume()
    client.check_same()
    server.changes = {"server_info": {"vllm_config": {"model_config": server.model, "instance_id": "second"}}}
    with pytest.raises(RuntimeError, match="was started anew while rollouts were drawn"):
        client.check_same()


@pytest.mark.parametrize(
    ("changes", "model", "said"),
    [
        ({"server_info": 404}, {}, r"cannot be used \(.*VLLM_SERVER_DEV_MODE=1"),
        ({"v1/models": 401}, {}, r"cannot be used \(Request failed: 401"),
        ({}, {"logprobs_mode": "raw_logprobs"}, "gives raw_logprobs, .*--logprobs-mode processed_logprobs"),
        ({}, {"max_model_len": 50}, "has room for 50 tokens, but .* need 56; start it with a larger --max-model-len"),
    ],
)
def test_servers_that_do_not_fit_are_refused_before_the_run(server, tmp_path, changes, model, said):
    server.changes = changes
    server.model.update(model)
    with pytest.raises((EngineError, ValueError), match=f"^The student's server http://127.0.0.1:.* {said}"):
        client_of(server, tmp_path)


def test_a_server_that_is_no_vllm_is_refused_in_every_process(server, tmp_path):
    server.changes = {"health": 404}
    args = grpo_config(
        *(tmp_path,), use_vllm=True, vllm_mode="server", vllm_server_base_url=server.url, vllm_weights_folder="/a"
    )
    with pytest.raises(EngineError, match=r"is no healthy vLLM server \(HTTPError\)"):
        check_reachable(args)


FITS = {"vllm_server_base_url": "http://a:1", "vllm_weights_folder": "/a"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"vllm_server_base_url": None}, "no server is named; set vllm_server_base_url"),
        ({"vllm_server_base_url": "localhost:8000"}, "'localhost:8000'; it must begin with http"),
        ({"vllm_weights_folder": None}, "no GPU here.*set vllm_weights_folder"),
        ({"student_timeout_s": 0.0}, "student_timeout_s is 0.0; it must be at least 1"),
        ({"student_retries": -1}, "student_retries is -1; it must be at least 0"),
        ({"student_concurrency": 0}, "student_concurrency is 0; it must be at least 1"),
    ],
)
def test_options_of_the_server_that_cannot_work(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        grpo_config(tmp_path, use_vllm=True, vllm_mode="server", **{**FITS, **fields})
