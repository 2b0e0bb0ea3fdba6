"""The promises of docs/security.md: no code from files, no secret in what a run writes, only text on a page."""

import ast
import json
import logging
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from helpers.openai_server import Server
from helpers.trainers import PAIR, grpo_config, grpo_trainer, in_turn, student_folder

from relay_trl.engines.checks import check_model
from relay_trl.engines.loading import load_engine, load_vocabulary
from relay_trl.engines.transformers import TransformersEngine
from relay_trl.training import RelayGRPOConfig

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for room in ("relay_trl", "recipes", "benchmarks") for path in (ROOT / room).rglob("*.py"))
PAGES = sorted(path for kind in ("html", "j2", "js") for path in (ROOT / "relay_trl").rglob(f"*.{kind}"))

# --- code out of files ---

FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "np.load", "numpy.load"}


def dangers(source):
    """Lines of `source` that may run what they read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if FORBIDDEN_MODULES & {name.partition(".")[0] for name in names}:
                found.append((node.lineno, "imports a pickler"))
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        values = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
        if name in FORBIDDEN_CALLS:
            found.append((node.lineno, name))
        if name == "torch.load" and values.get("weights_only") is not True:
            found.append((node.lineno, "torch.load without weights_only=True"))
        if values.get("trust_remote_code") is True or values.get("shell") is True or values.get("verify") is False:
            found.append((node.lineno, ast.unparse(node)))
        if values.get("autoescape") is False:
            found.append((node.lineno, "autoescape=False"))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "eval(x)",
        "torch.load(path)",
        "f(trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "yaml.load(x)",
        "jinja2.Environment(autoescape=False)",
    ],
)
def test_dangers_are_seen(line):
    assert dangers(line)


def test_no_line_of_ours_runs_what_it_reads():
    found = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert not {path: lines for path, lines in found.items() if lines}


def test_no_template_or_script_puts_text_in_as_html():
    wrong = re.compile(r"\|\s*safe|innerHTML|outerHTML|insertAdjacentHTML|document\.write|autoescape\s+false|\beval\(")
    assert PAGES
    assert not [(path.name, match[0]) for path in PAGES for match in wrong.finditer(path.read_text(encoding="utf-8"))]


class Plant:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def copy_of_student(folder, **changes):
    folder.mkdir()
    for path in (PAIR / "student").iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_weights_are_taken_from_safetensors_only(tmp_path):
    folder = copy_of_student(tmp_path / "student")
    with open(folder / "pytorch_model.bin", "wb") as file:
        pickle.dump({"x": Plant(tmp_path / "planted")}, file)
    with pytest.raises(ValueError, match=r"student has its weights in pytorch_model\.bin.*safetensors"):
        check_model(str(folder), "student")
    with pytest.raises(OSError, match="safetensors"):
        TransformersEngine.load(str(folder))
    # An honest file of that kind is refused as well
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TransformersEngine.load(str(folder))
    assert not (tmp_path / "planted").exists()


def test_code_that_comes_with_a_model_does_not_run_unasked(tmp_path):
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.T", None]}
    folder = copy_of_student(tmp_path / "student", model_type="evil", auto_map=auto)
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table |= {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')\nclass Config: pass\n")
    for load in (TransformersEngine.load, load_vocabulary):
        with pytest.raises((ValueError, OSError)):
            load(str(folder))
    assert not (tmp_path / "planted").exists()
    assert RelayGRPOConfig.__dataclass_fields__["trust_remote_code"].default is False


# --- secrets ---

SECRETS = [
    "hf_plantedtoken",
    "sk-planted-key",
    "planted-password",
    "YW5uYTpwbGFudGVkLXBhc3N3b3Jk",
]  # the last in base64


def shows(text):
    return [secret for secret in SECRETS if secret in text]


def leaks(folder):
    """Files under `folder` that hold a secret, whatever they are."""
    return [
        (path.name, secret)
        for path in folder.rglob("*")
        if path.is_file()
        for secret in SECRETS
        if secret.encode() in path.read_bytes()
    ]


@pytest.fixture
def gossip(monkeypatch):
    """A teacher's server that repeats in its faults every secret that it was sent."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-key")
    server = Server()

    def tell(handler):
        said = f"no: {handler.headers['Authorization']} for {handler.path}, sk-planted-key"
        handler.reply(400, {"error": {"message": said}})

    server.tell = tell
    server.secret_url = server.url.replace("http://", "http://anna:planted-password@")
    yield server
    server.close()


def test_the_gossip_reaches_a_trace_without_its_secrets(gossip):
    gossip.faults = [gossip.tell]
    with pytest.raises(RuntimeError) as caught:
        load_engine(gossip.secret_url, max_retries=0)
    assert "status 400" in str(caught.value) and not shows(str(caught.value))


def test_training_writes_no_secret(gossip, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    teacher = load_engine(gossip.url.replace("http://", "http://anna:planted-password@"), max_retries=0)
    gossip.faults = [gossip.tell] * 99
    fields = {"teacher": gossip.secret_url, "hub_token": "hf_plantedtoken", "max_teacher_failures": 1.0}
    args = grpo_config(tmp_path, save_strategy="steps", save_steps=1, disable_tqdm=False, **fields)
    trainer = grpo_trainer(args, in_turn("call, wrong", "right"), teacher)
    trainer.train()
    trainer.save_model(str(tmp_path))
    trainer.save_state()
    trainer.create_model_card()
    assert [entry["relay/teacher_failures"] for entry in trainer.state.log_history if "loss" in entry] == [0.5, 0.5]
    assert (tmp_path / "training_args.bin").exists() and (tmp_path / "README.md").exists()
    assert not leaks(tmp_path)
    assert not shows(f"{args} {args.to_dict()} {teacher.name} {teacher!r} {trainer.relay_record()}")
    written = capfd.readouterr()
    assert not shows(written.out + written.err) and not shows(caplog.text)


@pytest.mark.slow
def test_evaluation_writes_no_secret(gossip, tmp_path, capfd, recipe):
    options = yaml.safe_load((ROOT / "recipes" / "configs" / "arithmetic" / "evaluate.yaml").read_text())
    out = tmp_path / "out"
    options |= {"student": student_folder(), "teacher": gossip.secret_url, "teacher_retries": 0}
    options |= {"methods": ["teacher"], "limit": 4, "output_dir": str(out), "training_logs": None}
    path = tmp_path / "evaluate.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in options.items() if value is not None}))
    answer = gossip.answer

    def tell_after_the_check(body, is_chat):
        gossip.faults = gossip.faults or [gossip.tell] * 99  # from the next request on; the first is the check's
        return answer(body, is_chat)

    gossip.answer = tell_after_the_check
    status, *written = recipe("evaluate", "--config", path)
    assert (
        status == 0
        and (out / "rollouts.html").exists()
        and "status 400" in (out / "answers.arithmetic.jsonl").read_text()
    )
    assert not leaks(out) and not shows("".join(written))


@pytest.mark.slow
def test_a_recipe_that_ends_in_an_error_says_no_secret(gossip, capfd, monkeypatch, tmp_path, recipe):
    gossip.faults = [gossip.tell] * 9
    options = {"teacher": gossip.secret_url, "model_name_or_path": student_folder(), "use_cpu": True}
    options |= {"output_dir": str(tmp_path), "hub_token": "hf_plantedtoken", "dataset_size": 64, "validation_size": 16}
    monkeypatch.setenv("RELAY_TRL_TRACEBACK", "1")
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    _, said, error = recipe("grpo_relay", "--config", "recipes/configs/arithmetic/grpo_relay.yaml", *words)
    assert "error: " in error and not shows(said + error) and not leaks(tmp_path)
