"""Finding: what an attack found, as a value and as one safetensors file that replays exactly."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from efface.concept import Concept
from efface.context import Context
from efface.criterion import Criterion
from efface.edits.edit import Edit
from efface.edits.file import pack, unpack
from efface.errors import BadFile, BadInput, EffaceError
from efface.models.model import Model
from efface.query import Query
from efface.util import untrusted
from efface.util.files import load_safetensors, save_safetensors, sha256_tensors, sha256_text
from efface.util.untrusted import shorten

FORMAT = 1
WHAT = "is not a finding of an attack"


@dataclass(frozen=True, eq=False)
class Finding:
    """Hold the result of an attack.

    queries: the most successful ones, best first. A prompt that is not text is in their `context`, a picture that is
        the start of an image in their `latents`.
    scores: the attack's own estimate for each, by the judge it asked or by its loss. It was optimised, so it is
        biased: `judged` says what a judge sees that was not asked.
    edit: set by attacks that change weights (relearning): to be added to the edit under attack.
    success: whether the image of each query shows the concept, () until `judged`.
    cost: images generated, calls of the denoiser and of the text encoder (one image or text each), and what else the
        attack counts.
    about: further details of the search, JSON values.
    tensors: further results by name, such as learned token vectors.
    meta: provenance: the attack and its fields, concept, given queries, seed, models, versions, seconds; set by calling
        an attack.
    given: for each query the number of the given query that it was found for; () where each answers all of them.
    """

    queries: tuple[Query, ...] = ()
    scores: tuple[float, ...] = ()
    edit: Edit | None = None
    success: tuple[bool, ...] = ()
    cost: Mapping[str, float | int] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    given: tuple[int, ...] = ()

    @property
    def concept(self) -> Concept:
        """Return the concept that was looked for. Raises `BadInput` for a finding without provenance."""
        if "concept" not in self.meta:
            raise BadInput("this finding does not say which concept it is about")
        return Concept.from_json(self.meta["concept"])

    def replay(self, model: Model, batch: int = 32) -> Float[Tensor, "n 3 h w"]:
        """Generate the images of its queries with the attacked model, in order, in [0, 1].

        The finding's own edit, where there is one, is applied first. Another model may be given, to see whether what
        was found carries over; raises `BadInput` or `BadEdit` for one of another shape.
        """
        if self.edit is None:
            return model.generate(self.queries, batch)
        with self.edit.applied(model) as changed:
            return changed.generate(self.queries, batch)

    def judged(self, images: Float[Tensor, "n 3 h w"], criterion: Criterion) -> "Finding":
        """Return the finding with the success of each query, as a criterion says of its images from `replay`."""
        if len(images) != len(self.queries):
            raise BadInput(f"{len(images)} images do not fit the finding's {len(self.queries)} queries")
        success = tuple(criterion(images, self.concept).tolist()) if len(images) else ()
        return replace(self, success=success, meta={**self.meta, "criterion": criterion.describe()})

    def answers(self, queries: Sequence[Query]) -> tuple[Query, ...]:
        """Return for each plain query, by its prompt and seed, the best query that was found for it.

        Where nothing was found for it alone, it is the best one of its prompt, else the best of all, with its seed; one
        that starts from latents has no seed to change. A finding without queries answers with the plain ones.
        """
        if not self.queries:
            return tuple(queries)
        asked, own, of_prompt = _given(self.meta), {}, {}
        for number, one in zip(self.given, self.queries, strict=False):
            own.setdefault(asked[number], one)
            of_prompt.setdefault(asked[number][0], one)
        return tuple(
            own.get((query.prompt, query.seed))
            or replace(of_prompt.get(query.prompt, self.queries[0]), seed=query.seed)
            for query in queries
        )

    @property
    def id(self) -> str:
        """Return the sha256 of its queries, tensors and edit."""
        tensors, header = _pack(self)
        return sha256_text(sha256_tensors(tensors) + json.dumps(header["queries"], sort_keys=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the finding to one .safetensors file; raises `WriteError` and leaves no partial file."""
        tensors, header = _pack(self)
        if not tensors:  # some versions of safetensors refuse a file without tensors
            tensors = {"empty": torch.zeros(1)}
        save_safetensors(path, tensors, {"efface-finding": json.dumps({**header, "id": self.id})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Finding":
        """Read a finding. Raises `BadFile` for a damaged file, and for one that is no finding of this format."""
        tensors, meta = load_safetensors(path)
        if "efface-finding" not in meta:
            raise BadFile(f"{path} {WHAT}" + (": it is an edit" if "efface" in meta else ""))
        header = untrusted.parse(meta["efface-finding"], f"{path} {WHAT}: its header", BadFile)
        if header.get("format") != FORMAT:
            number = shorten(repr(header.get("format")))
            raise BadFile(f"{path} has finding format {number}; this version reads {FORMAT}: update efface")
        try:
            found = _unpack(tensors, header)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, EffaceError) as error:
            raise BadFile(f"{path} {WHAT}: {type(error).__name__}: {shorten(str(error), 300)}") from error
        if header.get("id") != found.id:
            raise BadFile(f"{path} is damaged: its content does not match its id")
        return found


def _pack(finding: Finding) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {f"tensors.{name}": tensor for name, tensor in finding.tensors.items()}
    queries = []
    for i, query in enumerate(finding.queries):
        named = {"latents": query.latents}
        if query.context is not None:
            own = query.context
            named |= {"tokens": own.tokens, "pooled": own.pooled, "guidance": own.guidance}
        tensors |= {f"queries.{i}.{name}": value for name, value in named.items() if value is not None}
        plain = {"prompt": query.prompt, "seed": query.seed, "steps": query.steps, "start": query.start}
        plain |= {"guidance": query.guidance, "solver": query.solver}
        queries.append(plain | ({} if query.embedded is None else {"embedded": query.embedded}))
    header: dict[str, Any] = {
        "format": FORMAT, "queries": queries, "scores": list(finding.scores), "success": list(finding.success),
        "given": list(finding.given), "cost": dict(finding.cost), "about": dict(finding.about),
        "meta": dict(finding.meta),
    }  # fmt: skip
    if finding.edit is not None:
        own, description = pack(finding.edit)
        tensors |= {f"edit.{name}": tensor for name, tensor in own.items()}
        header["edit"] = {**finding.edit.meta, **description}
    return tensors, header


def _unpack(tensors: dict[str, Tensor], header: dict[str, Any]) -> Finding:
    queries = []
    for i, plain in enumerate(header["queries"]):
        named = {name: tensors.get(f"queries.{i}.{name}") for name in ("tokens", "pooled", "guidance", "latents")}
        for name, tensor in named.items():
            if tensor is not None and not bool(tensor.float().isfinite().all()):
                raise ValueError(f"the {name} of query {i} have values that are not finite numbers")
        known = {name: plain[name] for name in ("prompt", "seed", "steps", "start", "guidance", "solver")}
        latents, tokens = named.pop("latents"), named.pop("tokens")
        context = None if tokens is None else Context(tokens, **named)
        queries.append(Query(**known, context=context, latents=latents, embedded=plain.get("embedded")))
    scores, success = tuple(header["scores"]), tuple(header["success"])
    if not untrusted.are_numbers(scores) or not all(isinstance(one, bool) for one in success):
        raise ValueError("its scores or successes are no numbers and truth values")
    if len(scores) != len(queries) or len(success) not in (0, len(queries)):
        raise ValueError(f"{len(queries)} queries have {len(scores)} scores and {len(success)} successes")
    given = tuple(header.get("given", ()))
    if len(given) not in (0, len(queries)) or not all(untrusted.is_count(one, 0, 2**31) for one in given):
        raise ValueError("it does not say of each query which given one it was found for")
    cost, about, meta = (header[name] for name in ("cost", "about", "meta"))
    if not all(isinstance(one, dict) for one in (cost, about, meta)) or not untrusted.are_numbers(cost.values()):
        raise ValueError("its cost or provenance is malformed")
    if "concept" in meta:
        Concept.from_json(meta["concept"])
    if any(one >= len(_given(meta)) for one in given):
        raise ValueError("it answers a query that was not given")
    edit = None
    if "edit" in header:
        edit = Edit(**unpack(_under("edit.", tensors), header["edit"]))
    tensors = _under("tensors.", tensors)
    return Finding(tuple(queries), scores, edit, success, cost, about, tensors, meta, given)


def _given(meta: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return prompt and seed of each query that the attack was given; raises ValueError or TypeError."""
    return [(str(prompt), int(seed)) for prompt, seed in meta.get("queries", ())]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


__all__ = ["Finding"]
