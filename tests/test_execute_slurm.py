"""The `slurm` executor without Slurm: what is submitted, how the folder is followed, and what a lost job leaves.

`sbatch`, `squeue` and `scancel` are small scripts here; tests/slurm has the real ones.
"""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit

from bench.config import Config, SlurmConfig
from bench.errors import RequestError
from bench.execute import choose, slurm
from bench.execute.events import Event, Jobs, Noted
from bench.execute.local import InTurn
from bench.execute.slurm import SlurmExecutor, command_of, work
from bench.sweep import Outcome
from tests.commandline import SOME_FAILED, WRONG_REQUEST, CommandLine
from tests.test_two_runs import forked, status
from tests.world import InProcess, World, make_world

METHODS = "concat,vanilla_mt"
SBATCH = """#!/bin/sh
id=$(($(cat {place}/count) + 1)); echo $id > {place}/count; cp "$1" {place}/script-$id
echo "$id PD" >> {place}/queue; echo "Submitted batch job $id"
"""
SQUEUE = """#!/bin/sh
if [ -e {place}/down ]; then echo "squeue: error: Unable to contact slurm controller" >&2; exit 1; fi
cat {place}/queue
"""
SCANCEL = """#!/bin/sh
echo $1 >> {place}/cancelled; grep -v "^$1 " {place}/queue > {place}/rest; mv {place}/rest {place}/queue
"""


class Cluster:
    """A Slurm that keeps its queue in a file and starts nothing by itself."""

    def __init__(self, place: Path) -> None:
        self.place, self.expected = place, 1
        place.mkdir()
        (place / "count").write_text("0\n")
        (place / "queue").write_text("")
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL), ("srun", "#!/bin/sh\n")):
            command = place / name
            command.write_text(text.format(place=place))
            command.chmod(0o755)

    def script(self, job: int) -> str:
        """What was submitted as a job."""
        return (self.place / f"script-{job}").read_text()

    def is_running(self, *jobs: int) -> None:
        """These jobs run, and all others are gone."""
        (self.place / "queue").write_text("".join(f"{job} R\n" for job in jobs))

    def waits(self) -> bool:
        """Whether all jobs that were asked for are submitted."""
        return len((self.place / "queue").read_text().splitlines()) == self.expected

    def cancelled(self) -> list[str]:
        file = self.place / "cancelled"
        return sorted(file.read_text().split()) if file.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path / "cluster")
    monkeypatch.setenv("PATH", str(made.place), prepend=":")
    monkeypatch.setattr(slurm, "POLL", 0.02)
    monkeypatch.setattr(slurm, "QUEUE_POLL", 0.0)
    return made


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "w", METHODS)


def executor(world: World, **options: Any) -> SlurmExecutor:
    """An executor of one job, or as many as asked for."""
    return SlurmExecutor(SlurmConfig(**options), ("run", "--seeds", "1"), world.store.folder / "slurm")


def test_what_is_submitted_is_a_command_line_and_what_it_may_use(cluster: Cluster, world: World) -> None:
    options = {
        "jobs": 2,
        "partition": "gpu",
        "account": "lab",
        "gpus": 2,
        "cpus": 8,
        "memory_gb": 32,
        "time": "1-12:00:00",
        "setup": ("module load cuda",),
        "options": {"nice": 100, "requeue": True},
    }
    with executor(world, **options) as made:
        made._submit()
        assert [job.job_id for job in made._jobs] == ["1", "2"]
        pickled = made._jobs[0].paths.submitted_pickle.read_bytes()
    script = cluster.script(1)
    for line in (
        "partition=gpu",
        "account=lab",
        "gpus-per-node=2",
        "cpus-per-task=8",
        "mem=32GB",
        "time=1-12:00:00",
        "nice=100",
        "requeue",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert "constraint" not in script
    submitted = pickle.loads(pickled)
    assert (submitted.function, submitted.args, submitted.kwargs) == (work, (("run", "--seeds", "1"),), {})
    assert len(pickled) < 2000
    assert cluster.cancelled() == ["1", "2"]


def follow(made: SlurmExecutor, world: World, notes: list[str]) -> Iterator[Outcome]:
    def observe(event: Event) -> None:
        if isinstance(event, Noted):
            notes.append(event.text)

    return world.sweep().run(made, observe)


def test_what_the_jobs_finish_is_followed_and_who_is_not_needed_any_more_is_cancelled(
    cluster: Cluster, world: World, tmp_path: Path
) -> None:
    alone = make_world(tmp_path / "alone", METHODS)
    alone.run()
    notes: list[str] = []
    cluster.expected = 2
    go_on = world.folder / "go-on"

    def train() -> None:
        outcomes = world.sweep().run(InProcess())
        next(outcomes)
        until(go_on.exists, lambda: list(outcomes))

    with executor(world, jobs=2) as made:
        outcomes = follow(made, world, notes)
        job = forked(lambda: until(cluster.waits, train))
        first = next(outcomes)
        assert world.store.finished() == [first.spec.id]  # told as soon as it is there
        go_on.touch()
        found = [first, *outcomes]
    assert status(job) == 0
    assert [(o.spec.method, o.status, o.text) for o in found] == [
        ("concat", "finished", "by another process"),
        ("vanilla_mt", "finished", "by another process"),
    ]
    assert world.results() == alone.results()
    assert cluster.cancelled() == ["1", "2"]
    assert notes == []


def until(condition: Callable[[], bool], then: Callable[[], object]) -> None:
    """Do something in a thread as soon as a condition holds."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
    then()


def test_when_all_jobs_are_gone_what_is_missing_has_failed_and_a_log_is_named(cluster: Cluster, world: World) -> None:
    notes: list[str] = []
    cluster.expected = 2
    with executor(world, jobs=2) as made:
        outcomes = follow(made, world, notes)
        threading.Thread(target=lambda: until(cluster.waits, cluster.is_running)).start()
        found = list(outcomes)
    logs = world.store.folder / "slurm"
    assert [o.status for o in found] == ["killed", "killed"]
    assert notes == [f"Slurm job {n} ended early; its log: {logs / str(n)}/{n}_0_log.err" for n in (1, 2)]
    failure = world.store.failure(found[0].spec.id)
    assert failure is not None
    assert failure["text"] == f"no Slurm job is left that would run it; their logs: {logs}"
    assert [o.status for o in world.run()] == ["finished", "finished"]


def test_without_jobs_a_trial_of_another_process_is_waited_for(cluster: Cluster, world: World) -> None:
    """Somebody's own `bench run` on the same folder has what no job is left for."""
    go_on = world.folder / "go-on"

    def slowly() -> None:
        outcomes = world.sweep().run(Paused(go_on))
        next(outcomes)

    other = forked(slowly)
    until((world.folder / "begun").exists, lambda: None)
    with executor(world, jobs=1) as made:
        outcomes = follow(made, world, [])
        threading.Thread(target=lambda: until(cluster.waits, cluster.is_running)).start()
        first = next(outcomes)  # of the two only one is free
        go_on.touch()
        found = [first, *outcomes]
    assert status(other) == 0
    assert [(o.spec.method, o.status) for o in found] == [("vanilla_mt", "killed"), ("concat", "finished")]


class Paused(InProcess):
    """Takes a trial, and trains it when a file is there."""

    def __init__(self, go_on: Path) -> None:
        self.go_on = go_on

    def run(self, jobs: Jobs) -> Iterator[Event]:
        taken = jobs.take()
        assert taken is not None
        self.go_on.with_name("begun").touch()
        until(self.go_on.exists, lambda: None)
        yield from super().run(InTurn([taken]))


def test_a_queue_that_does_not_answer_is_said_once_and_ends_no_job(cluster: Cluster, world: World) -> None:
    (cluster.place / "down").touch()
    notes: list[str] = []
    with executor(world, jobs=1) as made:
        outcomes = follow(made, world, notes)
        job = forked(lambda: until(cluster.waits, world.run))
        found = list(outcomes)
    assert status(job) == 0
    assert [o.status for o in found] == ["finished", "finished"]
    (note,) = notes
    assert "Unable to contact slurm controller" in note


def test_leaving_early_cancels_the_jobs(cluster: Cluster, world: World) -> None:
    with pytest.raises(KeyboardInterrupt), executor(world, jobs=3) as made:
        for _ in made.run(Interrupted()):
            pass
    assert cluster.cancelled() == ["1", "2", "3"]


class Interrupted:
    """Trials whose follower is interrupted."""

    def look(self) -> list[str]:
        raise KeyboardInterrupt

    def take(self) -> None:
        return None

    def waiting(self) -> int:
        return 1


def test_a_job_runs_the_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    """By submitit's executor for one machine; a wrong option is the only command that takes no seconds."""
    job = submitit.LocalExecutor(tmp_path / "%j").submit(work, ("run", "--nonsense"))
    assert job.result() == WRONG_REQUEST
    assert "No such option: --nonsense" in (job.stderr() or "")
    assert slurm._how_it_ended(job) == "ended with exit code 2"


def test_the_command_of_a_job_is_the_users_own_line_without_its_executor() -> None:
    given = Config.model_validate({"slurm": {"cpus": 4}})
    words = ["run", "--methods", "concat", "--set", "execute.executor=slurm"]
    assert command_of(given, words) == [
        *words,
        *("--set", "execute.executor=local"),
        *("--set", "execute.slots=4"),
        *("--set", "tracking.mlflow=false"),
    ]
    with_gpus = Config.model_validate({"slurm": {"cpus": 4, "gpus": 2}})
    assert "execute.slots=auto" in command_of(with_gpus, words)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    (tmp_path / "work").mkdir()
    return CommandLine(tmp_path / "work", tmp_path / "prepared", tmp_path / "data", monkeypatch)


def test_bench_run_by_slurm_from_one_end_to_the_other(bench: CommandLine, cluster: Cluster) -> None:
    """The queue loses the job, so the run says so and fails; what the job was told is the same run."""
    threading.Thread(target=lambda: until(cluster.waits, cluster.is_running)).start()
    options = ("--executor", "slurm", "--set", "slurm.jobs=9", "--set", "rollingq.rho=2")
    answer = bench.run("--methods", "concat", *options, "--config", str(config_in(bench.folder)))
    assert answer.code == SOME_FAILED, answer.err
    assert "1 of 1 trials to train, by 1 Slurm jobs" in answer.out
    assert "Slurm job 1 ended early; its log:" in answer.err
    assert "failed: killed: no Slurm job is left" in answer.err
    (pickled,) = (bench.results / "slurm").glob("*/*_submitted.pkl")
    (words,) = pickle.loads(pickled.read_bytes()).args
    for pair in (
        ("--methods", "concat"),
        ("--set", "rollingq.rho=2"),
        ("--results", str(bench.results)),
        ("--prepared", str(bench.prepared)),
        ("--data-root", str(bench.data_root)),
        ("--config", str(bench.folder / "bench.yaml")),
    ):
        assert any(words[i : i + 2] == pair for i in range(len(words))), pair
    assert words[-2:] == ("--set", "tracking.mlflow=false")
    planned = bench("plan", "--no-time", *words[1:], "--format", "json")
    assert planned.json["missing"] == [failure.stem for failure in (bench.results / "failures").glob("*.json")]


def config_in(folder: Path) -> Path:
    (folder / "bench.yaml").write_text("seeds: 1\n")
    return folder / "bench.yaml"


def test_slurm_that_is_not_there_is_said(bench: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    answer = bench.run("--methods", "concat", "--executor", "slurm")
    assert answer.code == WRONG_REQUEST
    assert "execute.executor: slurm: Could not detect" in answer.err
    assert "run bench where sbatch and srun are" in answer.err


@pytest.mark.parametrize(("name", "library"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_extra_is_one_error(
    bench: CommandLine, monkeypatch: pytest.MonkeyPatch, name: str, library: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == library else find(n))
    answer = bench.run("--methods", "concat", "--executor", name)
    assert answer.code == WRONG_REQUEST
    assert f"{name} needs {library}, which is not installed; pip install 'fusion-referee[{name}]' does it" in answer.err
    assert not bench.results.exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("execute.executor=moon", "'local', 'inline', 'slurm' or 'ray'"),
        ("slurm.jobs=0", "--set slurm.jobs: slurm.jobs: Input should be greater than or equal to 1 (found 0)"),
        ("slurm.partitoin=gpu", "unknown key 'partitoin'. Did you mean 'partition'?"),
        ("slurm.time=long", "slurm.time"),
        ("ray.gpus=1.5", "ray.gpus: a share is a part of one, or a whole number (found 1.5)"),
        ("ray.address=ray://head:10001", "ray.address"),
    ],
)
def test_a_wrong_setting_is_said(bench: CommandLine, setting: str, said: str) -> None:
    answer = bench.run("--methods", "concat", "--set", setting)
    assert answer.code == WRONG_REQUEST
    assert said in answer.err


def test_a_study_is_not_run_by_slurm() -> None:
    with pytest.raises(RequestError, match=r"slurm runs whole sweeps.*local, inline, ray.*sbatch"):
        choose.trial_executor(Config.model_validate({"execute": {"executor": "slurm"}}))
