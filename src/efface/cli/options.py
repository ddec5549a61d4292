"""Flags that several commands share, and the objects made from them."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from efface.cli import parse
from efface.errors import BadInput, unknown
from efface.util.solvers import SOLVERS

if TYPE_CHECKING:
    from efface.edits.edit import Edit
    from efface.models.model import Model, Query

MAX_BATCH = 4096  # images in memory at once
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

ModelFlag = Annotated[
    str, typer.Option("--model", "-m", help="mini, digits:mnist, a diffusers folder, a .safetensors file or a hub id.")
]
BaseFlag = Annotated[
    str, typer.Option("--model", "-m", help="The base model.", show_default="the one the edit was made on")
]
DeviceFlag = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, mps.")]
DtypeFlag = Annotated[str, typer.Option("--dtype", help="Precision: fp32, bf16 or fp16.")]
SeedsFlag = Annotated[str, typer.Option("--seeds", help="One image per seed: 0:8 is 0 to 7; or 0,3,5.")]
StepsFlag = Annotated[int | None, typer.Option("--steps", help="Sampling steps.", show_default="20")]
GuidanceFlag = Annotated[
    float | None, typer.Option("--guidance", help="Classifier-free guidance scale.", show_default="the family's, 7.5")
]
EmbeddedFlag = Annotated[
    float | None,
    typer.Option("--embedded", help="Guidance scale that a model reads as a number (FLUX.1 dev).", show_default="3.5"),
]
SolverFlag = Annotated[
    str | None, typer.Option("--solver", help="ddim, dpm++, pndm, euler, …", show_default="the model's own")
]
BatchFlag = Annotated[int, typer.Option("--batch", help="Images per batch; changes speed and memory, not images.")]
EditFlag = Annotated[
    list[str] | None,
    typer.Option("--edit", "-e", metavar="FILE…", help='An edit file, or a sum: "0.5*a.safetensors + b.safetensors".'),
]

Expression = Annotated[
    str,
    typer.Argument(metavar="EXPRESSION", help='A sum of edits: "0.5*a.safetensors + b.safetensors - c.safetensors".'),
]
TokenizerFlag = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="FOLDER",
        help="Folder with CLIP's vocabulary, for a single-file model, if none is found.",
    ),
]
AnyBaseFlag = Annotated[
    bool,
    typer.Option("--any-base", help="Also apply an edit that was made on other weights of the same architecture."),
]


@dataclass(frozen=True)
class Common:
    """Hold the flags that every command that generates images has, one field each."""

    steps: StepsFlag = None
    guidance: GuidanceFlag = None
    embedded: EmbeddedFlag = None
    solver: SolverFlag = None
    batch: BatchFlag = 32
    device: DeviceFlag = "cpu"
    dtype: DtypeFlag = "fp32"
    tokenizer: TokenizerFlag = None
    any_base: AnyBaseFlag = False

    def check(self) -> dict[str, Any]:
        """Return the sampling fields that were given. Raises BadInput or UnknownName for any flag out of range."""
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise BadInput(f"--steps {self.steps}: from 1 to 1000")
        if self.guidance is not None and not 0 <= self.guidance <= 100:
            raise BadInput(f"--guidance {self.guidance}: from 0 to 100")
        if self.embedded is not None and not 0 <= self.embedded <= 100:
            raise BadInput(f"--embedded {self.embedded}: from 0 to 100")
        if not 1 <= self.batch <= MAX_BATCH:
            raise BadInput(f"--batch {self.batch}: from 1 to {MAX_BATCH}")
        if self.solver and self.solver not in SOLVERS:
            raise unknown("solver", self.solver, SOLVERS)
        check_dtype(self.dtype)
        given = {
            "steps": self.steps, "guidance": self.guidance, "embedded": self.embedded, "solver": self.solver,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}

    def load(self, where: str) -> "Model":
        """Load a model, after all checks."""
        return load_model(where, self.device, self.dtype, self.tokenizer)


def with_common(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of `Common` (but for some), which it gets as its argument `common`."""
    return with_flags(Common, "common", *without)


def with_flags(shared_by: type, into: str, *without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags that a dataclass has as fields (but for some), which it gets as its argument `into`."""

    def wrap(call: Callable[..., None]) -> Callable[..., None]:
        shared = [f for f in fields(shared_by) if f.name not in without]

        @functools.wraps(call)
        def run(**values: Any) -> None:
            given = shared_by(**{f.name: values.pop(f.name) for f in shared})
            call(**values, **{into: given})

        own = [p for name, p in inspect.signature(call).parameters.items() if name != into]
        only = inspect.Parameter.KEYWORD_ONLY
        more = [inspect.Parameter(f.name, only, default=f.default, annotation=f.type) for f in shared]
        run.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (*own, *more)}
        return run

    return wrap


class Variadic(typer.core.TyperCommand):
    """Command whose repeatable flags take several values in a row."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = [flag for option in self.params if getattr(option, "multiple", False) for flag in option.opts]
        took = [flag for flag in flags if flag in args]
        ctx.obj = took[0] if took else ctx.obj  # for the message when an argument is missing
        return super().parse_args(ctx, parse.spread(args, flags))


def check_dtype(dtype: str) -> str:
    """Return torch's name of a precision. Raises UnknownName."""
    if dtype not in DTYPES and dtype not in DTYPES.values():
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES.get(dtype, dtype)


def load_model(where: str, device: str, dtype: str, tokenizer: Path | None = None) -> "Model":
    """Load a model, after all checks."""
    import torch

    from efface.models.model import Model

    if device.split(":")[0] not in ("cpu", "cuda", "mps", "xpu"):
        raise unknown("device", device, ("cpu", "cuda", "mps", "xpu"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    return Model.load(where, device=device, dtype=getattr(torch, check_dtype(dtype)), tokenizer=tokenizer)


def base_of(edit: "Edit") -> str:
    """Return the model an edit was made on, as its provenance names it."""
    base: Any = edit.meta.get("base", {})
    return str(base.get("name") or "mini")


def queries(prompts: list[str], seeds: tuple[int, ...], given: dict[str, Any]) -> "list[Query]":
    """Make one query per prompt and seed, prompts outermost."""
    from efface.models.model import Query

    return [Query(prompt, seed, **given) for prompt in prompts for seed in seeds]


def say(line: str, path: Path) -> None:
    """Print a line about what was done and the path of the result."""
    if line:
        typer.echo(line)
    typer.echo(path)
