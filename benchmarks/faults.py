"""Faults: commands that are killed, interrupted, run out of disk or share their files, and what that costs.

    python benchmarks/faults.py                # 50 kills of each command, about an hour on two cores
    python benchmarks/faults.py --kills 10     # fewer; the record says how many

Every run is a fork of one process that has imported efface, so that a fault can strike at any moment of the command
itself. Counted, and all to be 0 (records/faults.json):

    lost      the command, run again, does not end in the result of an undisturbed run
    damaged   a file under its final name that cannot be read
    left      files that remain after the command ran again, besides its results and the store
    noisy     another exit code than the fault's, or more than one line on standard error
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch  # noqa: F401
from PIL import Image
from safetensors import safe_open

from efface import Edit
from efface.cli.app import main
from efface.edits.provenance import git, versions
from efface.evaluation import record as records
from efface.evaluation.attack_record import read_attack
from efface.evaluation.bench.folder import Folder
from efface.finding import Finding
from efface.models.model import Model

COUNTED = ("lost", "damaged", "left", "noisy")
RECORD = Path(__file__).parent / "records" / "faults.json"
FEW = ("--seeds", "0", "--related-seeds", "0", "--target-seeds", "0:2", "--implicit-seeds", "0", "--styled-seeds", "0")
COMMANDS: dict[str, tuple[str, ...]] = {
    "erase": (
        *("erase", "esd", "church", "--preset", "mini", "--steps", "4", "--ddim-steps", "3", "--checkpoint", "state"),
        *("--checkpoint-every", "1", "-o", "out.safetensors"),
    ),
    "generate": ("generate", "a church", "a dog", "--seeds", "0:4", "--steps", "4", "--batch", "2", "-o", "out.png"),
    "evaluate": ("evaluate", "edit.safetensors", *FEW, "--steps", "2", "--json", "out.json"),
    "attack": (
        *("attack", "inversion", "edit.safetensors", "--preset", "mini", "--steps", "4", "--images", "2"),
        *("--batch", "2", "--seeds", "0:2", "--query-steps", "2", "--checkpoint", "state", "-o", "out.safetensors"),
    ),
    "bench": ("bench", "few.toml", "-o", "out.bench"),
}
BENCH = """model = "digits:mnist"
concepts = ["7"]
methods = ["negative", {name = "esd", steps = 3, batch = 1, params = "full"}]
attacks = [{name = "gradient", restarts = 1, iterations = 1, noises = 1, steps = 1, images = 1, ranking = 1}]
seeds = {target = 2, others = 1, related = 1, attack = 2}
"""


class Run(NamedTuple):
    """A command that ended: its exit code (minus a signal that killed it), standard error, and its seconds."""

    code: int
    said: str
    seconds: float


def start(args: tuple[str, ...], place: Path, home: Path, before: Callable[[], Any] = lambda: None) -> int:
    """Start a command in a child process and return the process's number; what it says goes to place.err."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.chdir(place)
        os.environ["EFFACE_HOME"] = str(home)
        for number, path in ((1, "/dev/null"), (2, f"{place}.{os.getpid()}.err")):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
        before()
        main(args)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def finish(child: int, place: Path, began: float) -> Run:
    """Wait for a command's end."""
    _, status = os.waitpid(child, 0)
    errors = Path(f"{place}.{child}.err")
    said = errors.read_text()
    errors.unlink()
    return Run(os.waitstatus_to_exitcode(status), said, time.monotonic() - began)


def run(args: tuple[str, ...], place: Path, home: Path, after: float = 0, number: int = 0, **more: Any) -> Run:
    """Run a command, and send it a signal `after` seconds unless it is 0."""
    began = time.monotonic()
    child = start(args, place, home, **more)
    if number:
        time.sleep(after)
        os.kill(child, number)
    return finish(child, place, began)


def result(place: Path) -> Any:
    """Return the output of a command in a form that equals that of the same command; raises for a damaged file."""
    (path,) = place.glob("out.*")
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.convert("RGB").tobytes()
    if path.suffix == ".json":
        return [found.model_dump_json(include={"rows"}) for found in records.read(path)]
    if path.suffix == ".bench":
        return rows_of(Folder(path))
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    if "efface-finding" in about:
        found = Finding.load(path)
        return [query.key for query in found.queries], found.success, found.scores
    return Edit.load(path).id


def rows_of(folder: Folder) -> Any:
    """Return the rows of all records of a bench, and the ids of its edits, by file name; raises for a damaged file."""
    found = {
        path.name: records.read(path)[0].model_dump_json(include={"rows"}) for path in folder.root.glob("records/*")
    }
    found |= {path.name: read_attack(path).model_dump_json(include={"rows"}) for path in folder.root.glob("attacks/*")}
    return found | {path.name: Edit.load(path).id for path in folder.root.glob("edits/*")}


def damaged(place: Path) -> int:
    """Return the number of outputs that cannot be read."""
    if not list(place.glob("out.*")):
        return 0
    try:
        result(place)
    except Exception:
        return 1
    return 0


def left(place: Path, home: Path) -> int:
    """Return the number of temporary files."""
    return sum(
        path.name.endswith(".tmp") or path.name.startswith(".")
        for root in (place, home)
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"  # a bench holds it while it runs; it stays, empty
    )


def noisy(name: str, ended: Run, *codes: int) -> int:
    """Return 1 for a run with another exit code or more on standard error than a line, else 0.

    A bench says a line for each job that fails.
    """
    wrong = ended.code not in codes or "Traceback" in ended.said
    wrong = wrong or (name != "bench" and ended.said.count("\n") > (ended.code != 0))
    if wrong:
        print(f"exit code {ended.code}: {ended.said[-500:]}", flush=True)
    return int(wrong)


@contextmanager
def places(root: Path, edit: Path) -> Iterator[tuple[Path, Path]]:
    """Make a working folder with an edit in it, and an empty store; both are removed."""
    folder = Path(tempfile.mkdtemp(dir=root))
    place, home = folder / "work", folder / "home"
    place.mkdir()
    home.mkdir()
    shutil.copy(edit, place / "edit.safetensors")
    (place / "few.toml").write_text(BENCH)
    try:
        yield place, home
    finally:
        shutil.rmtree(folder)


def struck(
    name: str, number: int, times: int, rng: random.Random, root: Path, edit: Path, want: Run, whole: Any
) -> Counter[str]:
    """Send a signal at random moments, then run the command again, and count."""
    counts: Counter[str] = Counter(runs=times)
    codes = {signal.SIGKILL: (-9,), signal.SIGINT: (130,), signal.SIGTERM: (143,)}[signal.Signals(number)]
    for _ in range(times):
        with places(root, edit) as (place, home):
            ended = run(COMMANDS[name], place, home, 0.02 + rng.random() * want.seconds, number)
            counts["struck"] += ended.code != 0
            counts["damaged"] += damaged(place)
            counts["noisy"] += noisy(name, ended, 0, *codes)
            counts["left at once"] += left(place, home)
            again = run(COMMANDS[name], place, home)
            counts["lost"] += again.code != 0 or result(place) != whole
            counts["left"] += left(place, home)
    return counts


def full_disk(name: str, times: int, rng: random.Random, root: Path, edit: Path) -> Counter[str]:
    """Run with too little room: on a small tmpfs where that is allowed, else with a limit on the size of a file."""
    counts: Counter[str] = Counter(runs=times)
    for _ in range(times):
        with places(root, edit) as (place, _home), small_disk(place / "small", rng) as limit:
            small = place / "small"
            counts["on a tmpfs"] += not limit
            args = tuple(f"small/{word}" if word.startswith(("out.", "state")) else word for word in COMMANDS[name])
            ended = run(args, place, small / "home", before=partial(limit_files, limit))
            counts["struck"] += ended.code != 0
            counts["damaged"] += damaged(small)
            counts["noisy"] += noisy(name, ended, 0, 2)
            counts["left"] += left(small, small)
    return counts


@contextmanager
def small_disk(folder: Path, rng: random.Random) -> Iterator[int]:
    """Mount a small disk and yield 0, or yield the size that files must not exceed where mounting is refused."""
    folder.mkdir()
    size = f"size={rng.choice((8, 16, 64))}k"
    mount = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield 0 if mounted else rng.choice((100, 1000, 4000))
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def limit_files(size: int) -> None:
    """Let no file of this process grow above a size in bytes; 0 for no limit."""
    if size:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def together(
    name: str, copies: int, times: int, root: Path, edit: Path, whole: Any, *, one_output: bool
) -> Counter[str]:
    """Run several copies of a command at once with one store, and one output or one each."""
    counts: Counter[str] = Counter(runs=times * copies)
    for _ in range(times):
        with places(root, edit) as (place, home):
            folders = [place] * copies if one_output else [place.parent / f"work{i}" for i in range(copies)]
            if not one_output:
                for folder in folders:
                    shutil.copytree(place, folder)
            args = tuple(
                word for word in COMMANDS[name] if word not in ("--checkpoint", "state", "--checkpoint-every", "1")
            )
            began = time.monotonic()
            children = [(start(args, folder, home), folder) for folder in folders]
            for child, folder in children:
                counts["noisy"] += noisy(name, finish(child, folder, began), 0, *((2,) if name == "bench" else ()))
            counts["damaged"] += sum(damaged(folder) for folder in set(folders))
            counts["lost"] += sum(not list(folder.glob("out.*")) or result(folder) != whole for folder in set(folders))
            counts["left"] += sum(left(folder, home) for folder in set(folders))
    return counts


def closed_output(name: str, times: int, root: Path, edit: Path, whole: Any) -> Counter[str]:
    """Run with a standard output that nobody reads, and with none."""

    def unread() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)

    counts: Counter[str] = Counter(runs=2 * times)

    def absent() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = None  # pyright: ignore[reportAttributeAccessIssue]  (what Python makes of a closed one)

    for before in [unread, absent] * times:
        with places(root, edit) as (place, home):
            ended = run(COMMANDS[name], place, home, before=before)
            counts["noisy"] += noisy(name, ended, 0, 2, 141)
            counts["damaged"] += damaged(place)
            counts["left"] += left(place, home)
            counts["lost"] += not list(place.glob("out.*")) or result(place) != whole
    return counts


def measure(
    kills: int, seed: int, root: Path, names: list[str], note: Callable[[str, str, Counter[str]], None]
) -> None:
    """Run every fault, and note the counts by fault and command."""
    rng, few, edit = random.Random(seed), max(2, kills // 5), root / "edit.safetensors"
    assert run(("erase", "uce", "church", "-o", str(edit)), root, root / "home").code == 0
    for name in names:
        with places(root, edit) as (place, home):
            want = run(COMMANDS[name], place, home)
            assert want.code == 0, want.said
            whole = result(place)
        for fault, number, times in (
            ("kill -9", signal.SIGKILL, kills),
            ("SIGINT", signal.SIGINT, few),
            ("SIGTERM", signal.SIGTERM, few),
        ):
            note(fault, name, struck(name, number, times, rng, root, edit, want, whole))
        note("full disk", name, full_disk(name, few, rng, root, edit))
        note("two writers", name, together(name, 2, few, root, edit, whole, one_output=True))
        note("closed output", name, closed_output(name, max(1, few // 2), root, edit, whole))
        if name == "evaluate":
            note("ten share a store", name, together(name, 10, 1, root, edit, whole, one_output=False))


def run_all() -> None:
    """Read the flags, measure, and write the record as it grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills of each command")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="update only these")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets background jobs ignore it
    Model.load("mini")  # so that every library is imported before the first fork
    about = {"kills": given.kills, "seed": given.seed, "versions": versions(), "git": git()}
    old = RECORD.is_file() and len(given.commands) < len(COMMANDS)
    found: dict[str, dict[str, dict[str, int]]] = json.loads(RECORD.read_text())["faults"] if old else {}
    total: Counter[str] = Counter()

    def note(fault: str, name: str, counts: Counter[str]) -> None:
        keys = sorted({*counts, *COUNTED})
        found.setdefault(fault, {})[name] = {key: int(counts[key]) for key in keys}
        total.clear()
        for one in (one for commands in found.values() for one in commands.values()):
            total.update({key: one[key] for key in ("runs", *COUNTED)})
        print(f"{fault:20}{name:10}{found[fault][name]}", flush=True)
        RECORD.write_text(json.dumps({**about, "total": total, "faults": found}, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        measure(given.kills, given.seed, Path(folder), given.commands, note)
    print(dict(total))


if __name__ == "__main__":
    run_all()
