"""A long run with faults: GRPO on the arithmetic pair while requests, the teacher and the trainer fail at random.

    python tests/faults/soak.py --output_dir runs/soak --steps 2000 --minutes 60

A run without faults and with the same settings goes beside it, on another core. The same command resumes both. They end after
`--minutes`; the report has the real number of steps.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.faults import FAULTS, FaultProxy  # noqa: E402
from helpers.served import free_port  # noqa: E402

ROOT = Path(__file__).parents[2]
TEACHER = "data/arithmetic/teacher"
CONFIGS = ROOT / "recipes" / "configs" / "arithmetic"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "-q", "--config_file", "accelerate_configs/cpu.yaml"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
FAULTY = 0.01  # share of the teacher's requests that go wrong
TRAINER_LIVES_S = (120, 300)  # the trainer is killed after a random time within these
TEACHER_LIVES_S = (120, 300)
RUN = {
    "per_device_train_batch_size": 64,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 20,
    "eval_strategy": "no",
    "save_steps": 10,
    "save_total_limit": 2,
    "teacher_timeout_s": 4,
    "teacher_retries": 3,
    "max_teacher_failures": 0.5,
    "teacher_failure_steps": 20,
    "disable_tqdm": "true",
    "resume_from_checkpoint": "auto",
}


class Teacher:
    """The teacher's server, a process of its own on one port, killed and started again at random."""

    def __init__(self, log: Path):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log, self.kills, self.process = log, 0, None
        self.start()
        limit = time.monotonic() + 600
        while time.monotonic() < limit and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/models", timeout=2):
                return
            time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"The teacher's server did not come up; see {log}.")

    def start(self):
        command = [sys.executable, str(Path(__file__).parent / "teacher_server.py"), str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=log, stderr=log)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def in_session(leader: int) -> list[int]:
    """The processes of the session that `leader` began."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            pid = int(entry.name)
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                found.append(pid)
    return found


def size_of(pids: list[int]) -> tuple[int, int]:
    """Resident MiB and open files of the largest of `pids`: the process that trains."""
    sizes = []
    for pid in pids:
        with suppress(OSError, IndexError):
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            sizes.append((pages * os.sysconf("SC_PAGE_SIZE") >> 20, len(os.listdir(f"/proc/{pid}/fd"))))
    return max(sizes, default=(0, 0))


def newest(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*")), default=0)


class Run:
    """A training run in `folder`, in as many processes, one after the other, as it takes."""

    def __init__(self, folder: Path, teacher: str, start: Path, steps: int):
        self.folder, self.steps = folder, steps
        folder.mkdir(parents=True, exist_ok=True)
        options = {"model_name_or_path": start, "output_dir": folder, "teacher": teacher, "max_steps": steps, **RUN}
        if "://" in teacher:
            options["teacher_tokenizer"] = TEACHER
        self.command = [*LAUNCH, "recipes/grpo_relay.py", "--config", str(CONFIGS / "grpo_relay.yaml")]
        self.command += [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self.state_path = folder / "soak_state.json"
        self.state = {"kills": 0, "stops": [], "segments": [], "faults": {}, "orphans": 0}
        if self.state_path.exists():
            self.state = json.loads(self.state_path.read_text())

    @property
    def is_done(self) -> bool:
        return (self.folder / "trainer_state.json").exists()

    def go(self, until: float, proxy: FaultProxy | None, teacher: Teacher | None, chance: random.Random):
        """Goes on until the run is done or the time is up; breaks trainer and teacher at random if there is a proxy."""
        teacher_dies = time.monotonic() + chance.uniform(*TEACHER_LIVES_S)
        while not self.is_done and time.monotonic() < until:
            with (self.folder / "log").open("ab") as log:
                process = subprocess.Popen(
                    self.command, cwd=ROOT, env=ENV, stdout=log, stderr=log, start_new_session=True
                )
            began, samples = time.monotonic(), []
            dies = began + chance.uniform(*TRAINER_LIVES_S) if proxy else float("inf")
            while process.poll() is None and time.monotonic() < min(dies, until):
                time.sleep(2)
                samples.append((round(time.monotonic() - began), *size_of(in_session(process.pid))))
                if teacher is not None and time.monotonic() > teacher_dies:
                    teacher.kill()
                    teacher.kills += 1
                    time.sleep(chance.uniform(0, 3))
                    teacher.start()
                    teacher_dies = time.monotonic() + chance.uniform(*TEACHER_LIVES_S)
            if process.poll() is None:
                self._kill(process)
            elif process.returncode != 0:
                last = (self.folder / "log").read_text(errors="replace").strip().splitlines()[-1]
                self.state["stops"].append(last[-400:])
            self.state["segments"].append({"until_step": newest(self.folder), "samples": samples[::10]})
            if proxy:
                self.state["faults"] = Counter(self.state["faults"]) + Counter(proxy.seen)
                proxy.seen.clear()
                self.state["teacher_kills"] = self.state.get("teacher_kills", 0) + teacher.kills
                teacher.kills = 0
            self.state_path.write_text(json.dumps(self.state))
            if len(self.state["stops"]) > 20:
                raise RuntimeError(f"The run stopped 20 times by itself; see {self.folder / 'log'}.")

    def _kill(self, process: subprocess.Popen):
        """SIGKILL to the trainer alone; what it started has to end by itself."""
        trainer = max(in_session(process.pid), key=lambda pid: size_of([pid]))
        os.kill(trainer, signal.SIGKILL)
        self.state["kills"] += 1
        for _ in range(100):
            if not in_session(process.pid):
                break
            process.poll()
            time.sleep(0.2)
        left = in_session(process.pid)
        self.state["orphans"] += len(left)
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def figures(self) -> dict:
        """What came of it: steps, learning over the last tenth, memory, files, logs."""
        done = self.folder / "trainer_state.json"
        path = done if done.exists() else self.folder / f"checkpoint-{newest(self.folder)}" / "trainer_state.json"
        history = json.loads(path.read_text())["log_history"] if path.exists() else []
        steps = [entry for entry in history if "loss" in entry]
        last = steps[-max(1, len(steps) // 10) :]

        def mean(name: str) -> float:
            return statistics.mean(entry[f"relay/{name}"] or 0.0 for entry in last) if last else float("nan")

        long = [s["samples"] for s in self.state["segments"] if len(s["samples"]) > 4]
        return {
            "steps": steps[-1]["step"] if steps else 0,
            "steps logged once each": [entry["step"] for entry in steps] == list(range(1, len(steps) + 1)),
            "accuracy": mean("accuracy"),
            "teacher_share": mean("teacher_share"),
            "call_rate": mean("call_rate"),
            "rollouts lost to the teacher": statistics.mean(s["relay/teacher_failures"] for s in steps) if steps else 0,
            "trainer killed": self.state["kills"],
            "stopped by itself": len(self.state["stops"]),
            "teacher killed": self.state.get("teacher_kills", 0),
            "requests that went wrong": sum(n for name, n in self.state["faults"].items() if name != "passed"),
            "requests": sum(self.state["faults"].values()),
            "orphans": self.state["orphans"],
            "MiB, early and late in a segment": [(part[1][1], part[-1][1]) for part in long],
            "open files, early and late": [(part[1][2], part[-1][2]) for part in long],
            "log in kB": round((self.folder / "log").stat().st_size / 1000) if (self.folder / "log").exists() else 0,
        }


def prepare(out: Path) -> Path:
    """The student after its warm-up, made once."""
    warmup, sft = out / "warmup.jsonl", out / "sft"
    if not warmup.exists():
        command = [sys.executable, "recipes/build_warmup.py", "--config", str(CONFIGS / "build_warmup.yaml")]
        subprocess.run([*command, "--output", str(warmup), "--dataset_size", "4096"], cwd=ROOT, env=ENV, check=True)
    if not (sft / "model.safetensors").exists():
        command = [*LAUNCH, "recipes/sft_warmup.py", "--config", str(CONFIGS / "sft_warmup.yaml")]
        options = ["--warmup_data", str(warmup), "--output_dir", str(sft)]
        subprocess.run([*command, *options], cwd=ROOT, env=ENV, check=True)
    return sft


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default="runs/soak", help="where everything goes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of each run (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=90, help="for both runs together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default: %(default)s)")
    args = parser.parse_args()
    out = Path(args.output_dir).resolve()
    out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * args.minutes
    start = prepare(out)
    chance = random.Random(args.seed + int((time.time() % 1e6) if (out / "noisy").exists() else 0))
    teacher = Teacher(out / "teacher.log")
    proxy = FaultProxy(teacher.url)
    names = list(FAULTS)
    proxy.choose = lambda request: chance.choice(names) if chance.random() < FAULTY else None
    noisy = Run(out / "noisy", proxy.url, start, args.steps)
    quiet = Run(out / "quiet", TEACHER, start, args.steps)
    try:
        with ThreadPoolExecutor(2) as both:
            runs = (
                both.submit(noisy.go, until, proxy, teacher, chance),
                both.submit(quiet.go, until, None, None, chance),
            )
            for run in runs:
                run.result()
    finally:
        teacher.kill()
        proxy.close()
    report = {"noisy": noisy.figures(), "quiet": quiet.figures()}
    (out / "soak.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
