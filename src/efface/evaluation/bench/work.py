"""Do the jobs of a bench: those that are missing, in this process, in several, or as Ray tasks.

Workers get jobs and paths, and put results into the folder; nothing else passes between them. So a worker that dies
costs its job only, and a bench that is started again does what is missing.
"""

import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from efface.errors import BadInput, Refused
from efface.evaluation.bench.folder import Folder
from efface.evaluation.bench.jobs import Job
from efface.evaluation.bench.run import run
from efface.evaluation.store import Store
from efface.util.progress import progress

TRIES = 2  # of a job that raises; a worker that dies does not count
REFUSED = "refused: "  # begins the error of a job that asks for what an attack cannot do; trying again would not help
DEATHS = 3  # of workers while they do one job


@dataclass
class Pool(ABC):
    """Base class of workers that share a folder of results and a store of images; they live until `close`."""

    folder: Folder
    store: Store

    @abstractmethod
    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        """Do jobs; yield every one with its error, "" for none, in the order in which they end."""

    def close(self) -> None:  # noqa: B027, most have nothing to stop
        """Let the workers go."""


@dataclass
class Outcome:
    """Hold what became of a bench: jobs done before, done now, and errors by label.

    failed: the last error of each job that failed. refused: why an attack does not apply to an edit.
    """

    before: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def work(jobs: Sequence[Job], folder: Folder, pool: Pool, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Do the jobs that are missing, edits before what needs them; a job that fails is tried twice, then noted.

    An attack that refuses an edit did not fail: it is noted, and not tried again.

    say: called with a line for each failure.
    """
    try:
        return _work(jobs, folder, pool, say)
    finally:
        pool.close()


def _work(jobs: Sequence[Job], folder: Folder, pool: Pool, say: Callable[[str], None]) -> Outcome:
    folder.make()
    missing = [job for job in jobs if not folder.done(job)]
    out, failed_edits = Outcome(before=len(jobs) - len(missing)), set()
    bar = iter(progress(range(len(jobs)), "jobs"))
    for _ in range(out.before):
        next(bar)
    for stage in (("edit",), ("evaluation", "attack")):
        todo = [job for job in missing if job.what in stage and job.edit_job.id not in failed_edits]
        tries: dict[str, int] = {}
        while todo:
            again = []
            for job, error in pool.results(todo):
                if not error:
                    out.done += 1
                    out.failed.pop(job.label, None)
                    next(bar, None)
                    continue
                tries[job.id] = tries.get(job.id, 0) + 1
                folder.fail(job, error, tries[job.id])
                say(f"{job.label}: {error}")
                if error.startswith(REFUSED):
                    out.refused[job.label] = error.removeprefix(REFUSED)
                    continue
                out.failed[job.label] = error
                if tries[job.id] < TRIES:
                    again.append(job)
                elif job.what == "edit":
                    failed_edits.add(job.id)
            todo = again
    for job in missing:  # what could not be tried since its edit failed
        if job.what != "edit" and job.edit_job.id in failed_edits:
            out.failed[job.label] = f"not tried: {out.failed[job.edit_job.label]}"
            folder.fail(job, out.failed[job.label], 0)
    return out


def attempt(job: Job, root: Path, store: Path) -> str:
    """Do one job; return its error on one line, "" for none. The part that runs in a worker."""
    try:
        run(job, Folder(root), Store(store))
    except Refused as error:
        return REFUSED + " ".join(str(error).split())
    except Exception as error:  # one job that fails must not stop hours of others
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return ""


@dataclass
class Here(Pool):
    """Do jobs in this process."""

    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        """Do one job after another."""
        for job in jobs:
            yield job, attempt(job, self.folder.root, self.store.root)


@dataclass
class Processes(Pool):
    """Do jobs in several processes of this machine, which share its cores."""

    count: int
    _pool: ProcessPoolExecutor | None = field(default=None, init=False, repr=False)

    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        """Keep every process busy; when one is killed, start anew and do again what was not finished."""
        left, deaths = list(jobs), dict.fromkeys((job.id for job in jobs), 0)
        while left:
            running: dict[Future[str], Job] = {}
            queue = list(left)
            try:
                while queue or running:
                    while queue and len(running) < self.count:
                        job = queue.pop(0)
                        running[self._submit(job)] = job
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        error = future.result()
                        job = running.pop(future)
                        left.remove(job)
                        yield job, error
            except BrokenExecutor:
                self.close()
                for job in running.values():
                    deaths[job.id] += 1
                    if deaths[job.id] >= DEATHS:
                        left.remove(job)
                        yield job, f"its worker died {DEATHS} times (out of memory?)"

    def _submit(self, job: Job) -> Future[str]:
        """Give a job to the processes, which are started with the first one: torch takes its seconds to import."""
        if self._pool is None:
            threads, context = max(1, (os.cpu_count() or 1) // self.count), cast("Any", get_context("spawn"))
            self._pool = ProcessPoolExecutor(self.count, context, initializer=_prepare, initargs=(threads,))
        return self._pool.submit(attempt, job, self.folder.root, self.store.root)

    def close(self) -> None:
        """Stop the processes; what they have not begun is not done."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _prepare(threads: int) -> None:
    """Prepare a worker: its share of the cores, and no look-ups in the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(threads)


@dataclass
class RayTasks(Pool):
    """Do jobs as tasks of a Ray cluster whose machines share the folder; a task is tried again when its worker is lost.

    address: of the cluster, "auto" for the one this machine is in, "local" to start one here.
    """

    address: str

    def results(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
        """Keep twice as many tasks in flight as the cluster has cores."""
        ray = connect(self.address)
        task = ray.remote(num_cpus=1, max_retries=DEATHS)(_on_one_core)
        queue, running = list(jobs), {}
        while queue or running:
            room = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
            while queue and len(running) < room:
                job = queue.pop(0)
                running[task.remote(job, self.folder.root.resolve(), self.store.root.resolve())] = job
            ended, _ = ray.wait(list(running), num_returns=1)
            for reference in ended:
                job = running.pop(reference)
                try:
                    error = ray.get(reference)
                except ray.exceptions.RayError as lost:
                    error = " ".join(f"its worker was lost: {lost}".split())[:500]
                yield job, error


def _on_one_core(job: Job, root: Path, store: Path) -> str:
    _prepare(1)
    return attempt(job, root, store)


def connect(address: str, seconds: float = 10.0) -> Any:
    """Return the module ray, connected to a cluster: "local", "auto", "HOST:PORT" or "ray://HOST:PORT".

    seconds: how long a machine has to answer. Raises `BadInput` without the package, or when nobody answers.
    """
    try:
        import ray
    except ImportError as error:
        raise BadInput("--ray needs the package ray: pip install 'efface[ray]'") from error
    if ray.is_initialized():
        return ray
    _answers(address, seconds)
    options: dict[str, Any] = {} if address == "local" else {"address": address}
    try:
        ray.init(log_to_driver=False, **options)
    except Exception as error:  # ConnectionError, ValueError and errors of its own
        raise BadInput(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from error
    return ray


def _answers(address: str, seconds: float) -> None:
    """Raise `BadInput` unless a machine takes connections: Ray itself would wait for minutes."""
    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise BadInput(f"--ray {address}: write local, auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), seconds).close()
    except OSError as error:
        raise BadInput(f"no Ray cluster answers at {address}: {error.strerror or error}") from error


__all__ = ["Here", "Outcome", "Pool", "Processes", "RayTasks", "attempt", "connect", "work"]
