"""The viewer without a browser: what it keeps of a run, what a page gets, and who has access."""

import random

import pytest
from helpers.made_up_run import SIZE, write_group, write_run
from starlette.testclient import TestClient

from relay_trl.viewer.follow import FIRST, MOST, FollowedRun
from relay_trl.viewer.server import watch_app
from relay_trl.viewer.watch import watch
from relay_trl.viewer.watch_page import render_watch_page


def test_a_page_gets_the_newest_first_and_then_all_others_once(tmp_path):
    writer = write_run(tmp_path, rollouts=8 * 600)
    client = TestClient(watch_app(FollowedRun(tmp_path)), base_url="http://127.0.0.1")
    first = client.get("/api/updates?epoch=-1&after=-1&figures=0").json()
    assert len(first["groups"]) == FIRST and len(first["figures"]) == 75 and first["run"]["folder"] == tmp_path.name
    ids = [group["id"] for group in first["groups"]]
    assert ids == sorted(ids) and first["groups"][-1]["step"] == 75
    while ids[0] > first["oldest"]:
        older = client.get(f"/api/older?before={ids[0]}").json()
        assert 0 < len(older) <= MOST
        ids = [group["id"] for group in older] + ids
    assert ids == list(range(600))

    write_group(writer, random.Random(0), 76, 0)
    here = f"/api/updates?epoch={first['epoch']}&after=599&figures=75"
    assert [group["id"] for group in client.get(here).json()["groups"]] == [600]
    writer.start(75, {})
    again = client.get(here).json()
    assert again["epoch"] != first["epoch"] and len(again["groups"]) == FIRST and again["groups"][-1]["step"] == 75


def test_only_the_newest_rollouts_are_held(tmp_path):
    write_run(tmp_path, rollouts=640)
    run = FollowedRun(tmp_path, max_rollouts=100)
    data = run.everything()
    assert [group["id"] for group in data["groups"]] == list(range(67, 80)) and len(data["figures"]) == 10
    assert sum(len(group["rollouts"]) for group in data["groups"]) == 13 * SIZE >= 100
    assert run.updates(run.epoch, 3, 0)["groups"] == data["groups"] and run.older(70) == data["groups"][:3]
    assert run.older(0) == run.older(-1) == []


def test_the_server_is_for_this_machine_and_its_own_pages(tmp_path):
    write_run(tmp_path, rollouts=64)
    app = watch_app(FollowedRun(tmp_path))
    assert TestClient(app, base_url="http://evil.example").get("/api/updates").status_code == 400
    client = TestClient(app, base_url="http://localhost:8090")
    assert "text/html" in client.get("/").headers["content-type"]
    for path in ("/api/updates?epoch=x", "/api/older?before=1.5"):
        assert client.get(path).status_code == 400 and "whole number" in client.get(path).json()["error"]
    (tmp_path / "_rollouts" / "run.json").write_text("{")
    assert client.get("/api/updates").status_code == 503


def test_data_cannot_end_its_element(tmp_path):
    data = {"groups": [{"prompt": "</script><script>alert(1)</script>", "reward": float("nan")}]}
    page = render_watch_page("</title><b>", data)
    assert "</script><script>alert" not in page and "<title>&lt;/title&gt;" in page and '"reward":null' in page


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (["nowhere"], FileNotFoundError, "rollouts_max_mb"),
        (["nowhere", "--max_rollouts", "0"], ValueError, "max_rollouts is 0"),
    ],
)
def test_what_cannot_be_watched(tmp_path, monkeypatch, options, error, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        watch(options)


def test_a_port_in_use(tmp_path):
    import socket

    write_run(tmp_path, rollouts=64)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="choose another --port"):
            watch([str(tmp_path), "--port", str(taken.getsockname()[1])])
