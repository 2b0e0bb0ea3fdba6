"""Stages as processes: their order, what is kept, what goes on, what is said when one cannot run or fails, the teacher's server."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from relay_trl.cli.progress import EVERY, MARK, Lines
from relay_trl.reproduction.expand import Stage
from relay_trl.reproduction.running import Runner, check_stages
from relay_trl.reproduction.teacher_server import TeacherServer, check_port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Scripted(Stage):
    """A stage whose process is a line of Python."""

    code: str = ""

    def words(self):
        return ["-c", self.code]


@pytest.fixture
def stage(tmp_path):
    def make(name, section="sft", code="", needs=(), **fields):
        result = tmp_path / name / "made"
        body = f"import os, sys; os.makedirs({str(result.parent)!r}, exist_ok=True); {code or 'pass'}; open({str(result)!r}, 'a').write('{name}')"
        return Scripted(name, section, {"seed": 1}, tmp_path, result, tuple(needs), code=body, **fields)

    return make


def run(stages, **options):
    said = []
    try:
        with Runner(say=said.append, **options) as runner:
            runner.run(stages)
    except (RuntimeError, ValueError, OSError) as error:
        said.append(f"error: {error}")
    return "\n".join(said)


def test_stages_run_in_order_and_are_kept(stage, tmp_path):
    first = stage("first", "warmup", "print('made')")
    second = stage("second", code=f"print(open({str(first.result)!r}).read())", needs=["first"])
    said = run([first, second])
    assert "error" not in said and second.result.exists()
    assert (tmp_path / "logs/second.log").read_text() == "first\n"
    assert (tmp_path / "configs/first.yaml").read_text() == f"# Launch:  {first.line()}\nseed: 1\n"
    said = run([first, second])
    assert said.count("kept") == 2 and first.result.read_text() == "first"  # not made again
    first.result.unlink()
    said = run([first, second])
    assert "was made from an earlier result of first, which has just been made anew; remove" in said


def test_a_failed_stage_is_told_in_its_own_sentence_and_what_needs_it_does_not_run(stage):
    first = stage("first", "warmup", "print('error: max_steps is -3; give more.', file=sys.stderr); sys.exit(1)")
    second = stage("second", needs=["first"])
    said = run([first, second])
    assert "error: The stage first failed; its error is in" in said and said.endswith("max_steps is -3; give more.")
    assert not second.result.exists()
    said = run([replace(first, code="import os; os.kill(os.getpid(), 9)")])
    assert "The stage first failed" in said


def test_several_stages_at_once_make_what_they_share_once(stage):
    shared = stage("shared", "warmup", "import time; time.sleep(0.3)")
    stages = [stage(f"run_{k}", needs=["shared"]) for k in range(3)]
    with Runner(jobs=3, say=lambda line: None) as runner:
        futures = [future for each in stages for future in runner.submit([shared, each])]
        assert [future.result() for future in futures] == [True] * 6
    assert shared.result.read_text() == "shared"


def test_a_stage_whose_input_is_missing_is_named_with_the_stage_that_makes_it(stage):
    first, second = stage("first", "warmup"), stage("second", needs=["first"])
    with pytest.raises(
        FileNotFoundError, match=r"second takes .*made, which is not there; the stage first makes it: add warmup to"
    ):
        check_stages([first, second], ["sft"])
    check_stages([first, second], None)
    run([first])
    check_stages([first, second], ["sft"])


def test_two_runs_into_one_folder_with_other_settings_are_refused(stage):
    first = stage("first")
    run([first])
    check_stages([first])
    other = replace(first, settings={"seed": 2, "learning_rate": 1.0})
    with pytest.raises(
        ValueError, match=r"other settings: seed was 1 and is now 2; learning_rate was None and is now 1.0. Give"
    ) as error:
        check_stages([other])
    assert str(first.result.parent) in str(error.value)
    first.result.unlink()  # killed before its end: what is there would be gone on with
    with pytest.raises(ValueError, match="seed was 1 and is now 2"):
        check_stages([other])


def test_progress_is_seen_where_there_is_no_terminal(stage, monkeypatch):
    monkeypatch.setenv(EVERY, "0.3")
    code = f"import time; print('a bar: 70%', end='', flush=True); print({MARK!r} + '3 of 4 steps, accuracy 0.50', flush=True); time.sleep(1.2)"
    said = run([stage("first", code=code)])
    assert "   first: 3 of 4 steps, accuracy 0.50 (" in said


def test_a_line_of_progress_has_done_total_rate_time_left_and_note(monkeypatch, capsys):
    monkeypatch.setenv(EVERY, "0.05")
    with Lines("answers", 10, done=2, is_shown=True) as lines:
        lines._begun -= 4
        lines.advance(4, "accuracy 0.500, teacher 0.100")
        time.sleep(0.3)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) >= 2 and shown[0].startswith(f"{MARK}6 of 10 answers, ")
    assert "a minute" in shown[0] and "4 s left" in shown[0] and shown[0].endswith("accuracy 0.500, teacher 0.100")
    assert Lines("steps", 3, is_shown=False).text() == "0 of 3 steps"


SERVER = """
import http.server, os, pathlib, sys
pathlib.Path(__file__).with_suffix('.pid').write_text(str(os.getpid()))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{}')
    def log_message(self, *args): pass
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def server(tmp_path, free_port):
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    made = TeacherServer(lambda options: ["python", str(path), str(free_port), *options.split()], free_port)
    yield made
    made.stop()


@pytest.mark.slow
def test_the_teachers_server_is_up_while_its_stages_run_and_gone_behind_them(stage, server, free_port):
    ask = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{free_port}/v1/models').status)"
    stages = [
        stage("one", code=ask, serve="--a"),
        stage("two", code=ask, serve="--a"),
        stage("three", code=ask, serve="--b"),
    ]
    said = run(stages, server=server)
    assert "error" not in said and all(each.result.exists() for each in stages)
    assert stages[0].config.read_text().startswith("# Teacher: python ")
    check_port(free_port)  # free again


@pytest.mark.slow
def test_a_killed_server_is_named(stage, server, tmp_path):
    kill = f"import time; os.kill(int(open({str(tmp_path / 'server.pid')!r}).read()), 9); time.sleep(0.3); sys.exit(1)"
    said = run([stage("one", code=kill, serve="--a")], server=server)
    assert "The stage one failed; the teacher's server was killed by signal 9; its log is" in said
    assert "Run the command again to go on." in said


@pytest.mark.slow
def test_a_port_in_use_and_a_server_that_ends_are_told_at_once(stage, server, free_port, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        said = run([stage("one", serve="--a")], server=server)
    assert f"error: The teacher is to be served at port {free_port}, which is in use; end what" in said
    (tmp_path / "server.py").write_text("import sys; sys.exit('no such model')")
    said = run([stage("one", serve="--a")], server=server)
    assert "the teacher's server ended with status 1" in said and said.endswith("Its last line: no such model")


@pytest.mark.slow
def test_what_is_told_to_leave_takes_its_process_with_it(stage, tmp_path):
    mark = tmp_path / "pid"
    slow = stage("slow", code=f"open({str(mark)!r}, 'w').write(str(os.getpid())); import time; time.sleep(60)")
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from pathlib import Path, PosixPath\nfrom test_running import Scripted\n"
        "from relay_trl.reproduction.running import Runner\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"with Runner() as runner:\n    runner.run([{slow!r}])\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(0.2)
    parent.terminate()
    assert parent.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
