"""Files for Docker and Kubernetes name options, ports and services that exist. No image is built here."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from relay_trl.__main__ import COMMANDS
from relay_trl.serving.config import KEYS_VARIABLE, ServingConfig

DEPLOY = Path(__file__).parents[1] / "deploy"
OPTIONS = {field.name for field in fields(ServingConfig)}
PORT = 8080


def options_in(words):
    return {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")} - {"config"}


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_dockerfiles(name):
    text = (DEPLOY / name).read_text()
    entry = yaml.safe_load(re.search(r"^ENTRYPOINT (.*)$", text, re.M)[1])
    assert entry[0] == "relay-trl" and entry[1] in COMMANDS
    assert options_in(entry) <= OPTIONS and entry[entry.index("--port") + 1] == str(PORT)
    example = shlex.split(re.search(r"docker run (.*)$", text, re.M)[1])
    assert options_in(example[example.index(f"relay-trl:{'cuda' if 'cuda' in name else 'cpu'}") :]) <= OPTIONS
    assert f"EXPOSE {PORT}" in text and "USER 1000" in text and KEYS_VARIABLE in text
    for source in re.findall(r"^COPY (.*) \S+$", text, re.M):
        assert all((DEPLOY.parent / part).exists() for part in source.split())


def test_compose():
    services = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]
    relay = services["relay"]
    given = dict(word.removeprefix("--").split("=", 1) for word in relay["command"])
    assert set(given) <= OPTIONS
    for name in ("student", "teacher"):
        assert given[name] == f"http://{name}:8000/v1" and "8000" in services[name]["command"]
        assert relay["depends_on"][name]["condition"] == "service_healthy" and services[name]["healthcheck"]
    assert relay["ports"] == [f"127.0.0.1:{PORT}:{PORT}"] and KEYS_VARIABLE in relay["environment"]
    assert (DEPLOY / relay["build"]["context"] / relay["build"]["dockerfile"]).is_file()
    assert int(relay["stop_grace_period"].rstrip("s")) > float(given["shutdown_s"])


def test_kubernetes():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "relay.yaml").read_text()))
    by_kind = {
        kind: {d["metadata"]["name"]: d for d in documents if d["kind"] == kind} for kind in ("Deployment", "Service")
    }
    config = yaml.safe_load(next(d for d in documents if d["kind"] == "ConfigMap")["data"]["serve.yaml"])
    assert set(config) <= OPTIONS
    assert ServingConfig(**config).model_name == "my-relay-student"
    for name in ("student", "teacher", "relay"):
        pod = by_kind["Deployment"][name]["spec"]["template"]
        service = by_kind["Service"][name]["spec"]
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        (container,) = pod["spec"]["containers"]
        assert service["ports"][0]["targetPort"] == container["ports"][0]["name"]
        assert {volume["name"] for volume in container["volumeMounts"]} <= {v["name"] for v in pod["spec"]["volumes"]}
        if name != "relay":
            assert config[name] == f"http://{name}:{service['ports'][0]['port']}/v1"
    pod = by_kind["Deployment"]["relay"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["ports"][0]["containerPort"] == PORT and container["env"][0]["name"] == KEYS_VARIABLE
    assert pod["terminationGracePeriodSeconds"] > config["shutdown_s"] + 5
    assert {container[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")} == {
        "/health",
        "/ready",
    }
