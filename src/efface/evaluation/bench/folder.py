"""The folder of a bench: edits, findings and records by the ids of their jobs. Every file is whole or not there."""

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from efface.errors import BadFile, BadInput, EffaceError
from efface.evaluation.attack_record import AttackRecord, read_attack
from efface.evaluation.bench.jobs import Job
from efface.evaluation.record import Aggregate, Record, read
from efface.util import untrusted
from efface.util.files import check_safetensors, writing

SUFFIX = {"edit": "edits/{}.safetensors", "evaluation": "records/{}.json", "attack": "attacks/{}.json"}


@dataclass(frozen=True)
class Folder:
    """Hold the results of a bench.

    edits/, records/, attacks/, findings/: results by job id. checkpoints/: of trainings that were stopped.
    failed/: the error of a job whose last try failed. jobs.json: the ids of the bench's jobs as it was last run; what
    an earlier form of the bench left is kept, and not shown.
    """

    root: Path

    def make(self) -> None:
        """Make the folders that are not there."""
        for name in ("edits", "records", "attacks", "findings", "failed", "checkpoints"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other bench write into the folder meanwhile. Raises `BadInput` when one does."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes when the process ends, however it ends
            except OSError:
                raise BadInput(f"another bench is writing to {self.root}: wait for it, or choose another -o") from None
            yield

    def path(self, job: Job) -> Path:
        """Return the file that a job makes."""
        return self.root / SUFFIX[job.what].format(job.id)

    def finding(self, job: Job) -> Path:
        """Return the file of an attack's finding."""
        return self.root / "findings" / f"{job.id}.safetensors"

    def checkpoints(self, job: Job) -> Path:
        """Return the folder of the checkpoints of a job."""
        return self.root / "checkpoints" / job.id

    def plan(self, jobs: Iterable[Job]) -> None:
        """Write down which jobs the bench has now."""
        with writing(self.root / "jobs.json") as path:
            path.write_text(json.dumps({"jobs": sorted({job.id for job in jobs})}) + "\n", encoding="utf-8")

    def _planned(self, jobs: Iterable[Job] | None) -> set[str] | None:
        """Return the ids of some jobs, or of those the bench has now; None where nobody wrote them down."""
        if jobs is not None:
            return {job.id for job in jobs}
        path = self.root / "jobs.json"
        return set(map(str, untrusted.read(path).get("jobs", ()))) if path.is_file() else None

    def done(self, job: Job) -> bool:
        """Return whether a job's file is there and whole."""
        path = self.path(job)
        if not path.is_file():
            return False
        try:
            if job.what == "edit":
                check_safetensors(path)
            else:
                untrusted.read(path)
        except EffaceError:
            return False
        return True

    def fail(self, job: Job, error: str, tries: int) -> None:
        """Write down why a job failed."""
        with writing(self.root / "failed" / f"{job.id}.json") as path:
            path.write_text(json.dumps({"job": job.label, "error": error, "tries": tries}) + "\n", encoding="utf-8")

    def succeed(self, job: Job) -> None:
        """Forget that a job failed before."""
        (self.root / "failed" / f"{job.id}.json").unlink(missing_ok=True)

    def failures(self, jobs: Iterable[Job] | None = None) -> dict[str, str]:
        """Return the error of every job that failed, of some jobs or the bench's, by its label."""
        ids = self._planned(jobs)
        paths = sorted((self.root / "failed").glob("*.json"))
        found = [untrusted.read(path) for path in paths if ids is None or path.stem in ids]
        return {str(one.get("job")): str(one.get("error")) for one in found}

    def records(self, jobs: Iterable[Job] | None = None) -> list[Record | Aggregate]:
        """Return the evaluations, of some jobs or the bench's. Raises `BadFile` for a damaged one."""
        return [one for path in self._paths("records", jobs, "evaluation") for one in read(path)]

    def attacks(self, jobs: Iterable[Job] | None = None) -> list[AttackRecord]:
        """Return the attacks, of some jobs or the bench's. Raises `BadFile` for a damaged one."""
        return [read_attack(path) for path in self._paths("attacks", jobs, "attack")]

    def _paths(self, folder: str, jobs: Iterable[Job] | None, what: str) -> list[Path]:
        if jobs is None:
            if not (self.root / folder).is_dir():
                raise BadFile(f"{self.root} is not the folder of a bench: it has no {folder}/")
            ids = self._planned(None)
            return [path for path in sorted((self.root / folder).glob("*.json")) if ids is None or path.stem in ids]
        return [path for job in jobs if job.what == what and (path := self.path(job)).is_file()]


__all__ = ["Folder"]
