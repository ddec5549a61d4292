"""Latent inversion: the noise from which the edited model generates a given picture of the concept.

Rusanovsky, Malnick, Jevnisek, Fried and Avidan 2025, Memories of Forgotten Concepts, https://arxiv.org/abs/2412.00782:
if the picture comes back at a high PSNR from noise as likely as any other, the concept is still there. Code:
https://github.com/matanr/Memories_of_Forgotten_Concepts.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from efface import registry
from efface.attack import Attack, Finding, Need, Target
from efface.attacks.search.cost import Cost, calls_of
from efface.attacks.search.pictures import pictures
from efface.attacks.search.starts import alike, plain, ranked
from efface.concept import Concept
from efface.edits.guard import unguided
from efface.errors import BadInput
from efface.models.inversion import ddim_steps, invert
from efface.models.likelihood import log_likelihood, norm_quantile, psnr
from efface.models.students import view
from efface.query import Query
from efface.training.checkpoints import State
from efface.training.loop import descend, optimizer
from efface.util.files import sha256_tensors
from efface.util.progress import progress
from efface.util.ranges import COUNT, GUIDANCE, OR_NONE, RATE, ROWS, Ranges


@dataclass(frozen=True)
class LatentInversion(Attack):
    """Invert pictures of the concept to initial noise of the edited model, by DDIM, under the given prompts.

    Args:
        images: pictures of the concept by the original model, each with one of the prompts in turn
        folder: pictures to invert instead
        guidance: of the queries; at 1, the paper's, a negative prompt does nothing; empty = the queries' own
        rounds: fixed-point iterations of each step of the inversion
        iterations: steps of Adam that then optimise the noise through the whole sampler, 0 for none
        lr: their learning rate
        batch: pictures at once
    """

    images: int = 5
    folder: str = ""
    guidance: float | None = 1.0
    rounds: int = 5  # the code's num_renoise_steps
    iterations: int = 0
    lr: float = 1e-2
    batch: int = 8

    RANGES: ClassVar[Ranges] = {
        "images": COUNT, "guidance": GUIDANCE, "rounds": "[0, 1000]", "iterations": OR_NONE, "lr": RATE, "batch": ROWS,
    }  # fmt: skip
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "repo": {},
        "optimised": {"iterations": 100},
        "mini": {"images": 16, "batch": 16, "iterations": 20, "lr": 5e-2},
    }
    QUICK: ClassVar[dict[str, Any]] = {"images": 2, "rounds": 1, "iterations": 1}
    NEEDS: ClassVar[tuple[Need, ...]] = ()

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that there are pictures to invert."""
        super().check(target, concept, queries)
        if not self.folder and target.original is None:
            raise BadInput("latent_inversion needs pictures of the concept: give the original model, or a folder")

    def search(self, target: Target, concept: Concept, queries: tuple[Query, ...], seed: int) -> Finding:
        """Return one query for each picture, by PSNR; `about` has the PSNR and the likelihood of the noise of each.

        `tensors` holds the pictures, as the autoencoder decodes them.
        """
        model = target.edited
        clean = pictures(target, concept.texts, self.images, queries[0], seed, self.folder).to(model.device)
        asked = [queries[i % len(queries)] for i in range(len(clean))]
        if self.guidance is not None:
            asked = [replace(query, guidance=self.guidance) for query in asked]
        asked = list(plain(asked, "ddim"))
        seeds = torch.zeros_like(clean)
        losses: list[list[float]] = []
        groups = [group[i : i + self.batch] for group in alike(asked) for i in range(0, len(group), self.batch)]
        for number, rows in enumerate(progress(groups, "inverting pictures")):
            own, wanted = [asked[n] for n in rows], clean[rows]
            seeds[rows] = self._inverted(target, own, wanted)
            if self.iterations:
                run = {"concept": concept.to_json(), "seed": seed, "queries": [query.key for query in own]}
                run |= {"pictures": sha256_tensors({"": wanted})}
                seeds[rows], history = self._optimised(target, own, wanted, seeds[rows], run, number)
                losses.append(history)
        found = [replace(query, latents=x[None].clone()) for query, x in zip(asked, seeds.cpu(), strict=True)]
        shown = model.decode(clean).cpu()
        best, values, order = ranked(found, psnr(model.generate(found, self.batch).cpu(), shown))
        noise = seeds.cpu()[order]
        about = {
            "psnr": list(values),  # dB
            "log likelihood": log_likelihood(noise).tolist(),  # nats per dimension
            "norm quantile": norm_quantile(noise).tolist(),
            "loss": losses,
        }
        given = tuple(i % len(queries) for i in order)
        cost = self._cost(target, concept, queries[0], asked)
        return Finding(best, values, given=given, cost=vars(cost), about=about, tensors={"pictures": shown[order]})

    @torch.no_grad()
    def _inverted(self, target: Target, asked: list[Query], clean: Tensor) -> Tensor:
        """Return the noise of DDIM inversion; a guard's hooks begin anew at each timestep."""
        model = target.edited
        cond, null = model.contexts(asked)
        guidance = torch.tensor([query.guidance for query in asked], device=clean.device).view(-1, 1, 1, 1)
        alone = bool((guidance == 1).all()) and model.hooks().guide is unguided

        def noise(x: Tensor, t: float | int) -> Tensor:
            time = torch.tensor(t, device=x.device)
            if alone:
                return model.eps(x, time, model.hooks().embed(cond))
            with_c, without = model.denoise(x, time, cond, null)
            return without + guidance * (with_c - without)

        return invert(model.family.schedule, clean, ddim_steps(model, asked[0].steps), noise, self.rounds)

    def _optimised(
        self, target: Target, asked: list[Query], clean: Tensor, start: Tensor, run: dict[str, Any], number: int
    ) -> tuple[Tensor, list[float]]:
        """Return the noise of each row with the lowest error on the way, and the mean error of every step."""
        x, best = nn.Parameter(start.clone()), start.clone()
        least = torch.full((len(start),), torch.inf, device=start.device)

        frozen = view(target.edited, {})  # without gradients of the weights

        def loss(_: int) -> Tensor:
            made = frozen.sample(asked, latents=x, grad=True)
            errors = (made - clean).square().mean((1, 2, 3))
            with torch.no_grad():
                better = errors < least
                least[better], best[better] = errors[better], x[better]
            return errors.sum()

        state = State({"x": x, "best": best, "least": least}, {"main": optimizer("adam", [x], self.lr)})
        run |= {"attack": registry.to_json(self), **target.describe()}
        with torch.inference_mode(False), torch.enable_grad():
            descend(loss, state, self.iterations, label="optimising noise", run=run, stage=f"noise-{number}")
        return best, [value / len(start) for value in state.history["loss"]]

    def _cost(self, target: Target, concept: Concept, like: Query, asked: list[Query]) -> Cost:
        once, cost = calls_of(target.edited, asked), Cost()
        if not self.folder:
            texts = concept.texts
            own = [replace(like, prompt=texts[i % len(texts)], latents=None, start=0) for i in range(len(asked))]
            cost.generated(target.source, own)
        cost.generated(target.edited, asked)
        cost.images += len(asked) * self.iterations
        cost.calls += once * (1 + self.rounds + self.iterations)
        cost.backward = once * self.iterations
        return cost


__all__ = ["LatentInversion"]
