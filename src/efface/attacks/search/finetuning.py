"""Fine-tuning of the edited model on captioned pictures, of all weights of a set or of low-rank factors (LoRA)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from efface import registry
from efface.attack import Attack, Finding, Target
from efface.attacks.search.cost import Cost
from efface.attacks.search.starts import ranked, seen
from efface.concept import Concept
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.methods.finetune.parameters import select
from efface.models.model import Model
from efface.models.students import view
from efface.query import Query
from efface.training.checkpoints import State
from efface.training.loop import descend, generator, optimizer
from efface.util.files import sha256_tensors
from efface.util.ranges import COUNT, DECAY, RATE, ROWS, Ranges


@dataclass(frozen=True)
class Tuning(Attack):
    """Base class of attacks that train the edited model; what they find is an edit, to be added to that under attack.

    Args:
        steps: of AdamW
        lr: learning rate
        batch: pictures in each step
        accumulate: forward and backward passes a step, whose gradients are averaged
        rank: of LoRA; 0 trains the weights themselves
        params: weights that are trained, or that LoRA is beside: full, x (cross-attention), attn (both attentions) and
            the other sets of the erasing methods, or a pattern such as *mid_block*; LoRA takes the linear layers
            among them
        weight_decay: of AdamW
        images: pictures to train on by the original model
    """

    steps: int = 400
    lr: float = 1e-4
    batch: int = 1
    accumulate: int = 1
    rank: int = 0
    params: str = "full"
    weight_decay: float = 1e-2
    images: int = 5

    CHANGES_WEIGHTS: ClassVar[bool] = True
    RANGES: ClassVar[Ranges] = {
        "steps": COUNT, "lr": RATE, "batch": ROWS, "accumulate": COUNT, "rank": "[0, 4096]", "weight_decay": DECAY,
        "images": COUNT,
    }  # fmt: skip

    def check(self, target: Target, concept: Concept, queries: tuple[Query, ...]) -> None:
        """Check that there are weights to train, in a precision that can be trained."""
        super().check(target, concept, queries)
        if target.edited.dtype == torch.float16:
            raise BadInput("float16 loses small gradients: load the model in bf16 or fp32 to train it")
        if target.judge is not None:
            target.success.check(concept)
        chosen = select(target.edited, self.params)
        if self.rank and not _linear(target.edited, chosen):
            raise BadInput(f"params {self.params!r} holds no linear layer of the denoiser that LoRA can be beside")


class Student:
    """The model in training, which shares all but the trained tensors with the edited one.

    model: without guards. trained: what the optimiser changes, fp32. LoRA starts at no change.
    """

    def __init__(self, edited: Model, params: str, rank: int, seed: int) -> None:
        bare = replace(edited, guards=())
        chosen = select(bare, params)
        self.base, self.factors = bare.weights(""), dict[str, tuple[nn.Parameter, nn.Parameter]]()
        self.weights: dict[str, nn.Parameter] = {}
        self.trained: dict[str, Tensor] = {}
        if rank:
            self.model = view(bare, {})
            for number, name in enumerate(_linear(bare, chosen)):
                self._add(name, rank, generator(seed, "lora", number))
            return
        self.model = view(bare, {name: p.data.clone() for name, p in chosen.items()})
        self.weights = {name: p for name, p in self.model.weights("").items() if name in chosen}
        for name, p in self.weights.items():  # small steps would round away in half precision
            p.requires_grad_()
            self.trained[name] = p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())

    def _add(self, name: str, rank: int, rng: torch.Generator) -> None:
        """Add x -> x down^T up^T to a linear layer, W + up down: down is random and up zero (Hu et al. 2021)."""
        weight = self.base[name]
        rank = min(rank, *weight.shape)
        bound = weight.shape[1] ** -0.5
        drawn = torch.rand(rank, weight.shape[1], generator=rng) * 2 * bound - bound
        down = nn.Parameter(drawn.to(weight.device))
        up = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))

        def beside(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
            return out + (inputs[0] @ down.T.to(out.dtype)) @ up.T.to(out.dtype)

        self.model.denoiser.get_submodule(_path(self.model, name)).register_forward_hook(beside)
        self.factors[name] = (down, up)
        self.trained |= {f"{name}.down": down, f"{name}.up": up}

    def gather(self) -> None:
        """Give the fp32 copies the gradients of half-precision weights."""
        for name, p in self.weights.items():
            if self.trained[name] is not p:
                self.trained[name].grad, p.grad = None if p.grad is None else p.grad.float(), None

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the fp32 copies into half-precision weights."""
        for name, p in self.weights.items():
            p.copy_(self.trained[name])

    @torch.no_grad()
    def delta(self) -> dict[str, Tensor]:
        """Return the trained model minus the edited one by weight, fp32 on the CPU."""
        if self.factors:
            return {name: (up @ down).cpu() for name, (down, up) in self.factors.items()}
        return {name: (self.trained[name] - self.base[name].float()).cpu() for name in self.weights}


def _path(model: Model, name: str) -> str:
    return name.removeprefix(f"{model.family.DENOISER}.").removesuffix(".weight")


def _linear(model: Model, names: Sequence[str] | dict[str, nn.Parameter]) -> list[str]:
    """Return the names among these of the denoiser's linear layers' weights."""
    start = f"{model.family.DENOISER}."
    inside = [name for name in names if name.startswith(start) and name.endswith(".weight")]
    return [name for name in inside if isinstance(model.denoiser.get_submodule(_path(model, name)), nn.Linear)]


def tune(
    attack: Tuning,
    target: Target,
    concept: Concept,
    queries: tuple[Query, ...],
    latents: Float[Tensor, "p ch h w"],
    captions: Sequence[str],
    seed: int,
) -> Finding:
    """Train the edited model, without its guards, to predict the noise in captioned pictures; resumes.

    captions: one for each picture. Returns the finding: the edit, and the given queries by the judge's probability
    under it, or without a judge by the negated loss of the last tenth of the steps.
    """
    student = Student(target.edited, attack.params, attack.rank, seed)
    schedule = student.model.family.schedule
    with torch.no_grad():
        texts = list(dict.fromkeys(captions))
        contexts = student.model.encode(texts).float()
    row = torch.tensor([texts.index(caption) for caption in captions])

    def loss(draw: int) -> Tensor:
        rng = generator(seed, "draw", draw)
        which = torch.randint(len(latents), (attack.batch,), generator=rng)
        t = schedule.random_times(attack.batch, rng).to(latents.device)
        noise = torch.randn(attack.batch, *latents.shape[1:], generator=rng).to(latents)
        clean = latents[which.to(latents.device)]
        guess = student.model.eps(schedule.noised(clean, noise, t), t, contexts[row[which].to(contexts.device)])
        return (guess - schedule.target(clean, noise)).square().mean()

    adam = optimizer("adamw", list(student.trained.values()), attack.lr, attack.weight_decay)
    state = State(student.trained, {"main": adam})
    run: dict[str, Any] = {
        "attack": registry.to_json(attack), "concept": concept.to_json(), "seed": seed, "edited": target.edited.id,
        "captions": list(captions), "pictures": sha256_tensors({"": latents}),
    }  # fmt: skip
    with torch.inference_mode(False), torch.enable_grad():
        descend(
            loss, state, attack.steps, label=f"fine-tuning for {concept.name}", run=run, stage="tuning",
            gradients=student.gather, updated=student.publish, resumed=student.publish, accumulate=attack.accumulate,
        )  # fmt: skip
    history = state.history["loss"]
    state.release()
    edit = _edit(attack, target.edited, student.delta(), seed)
    return _finding(attack, target, concept, queries, edit, history, len(texts))


def with_pictures(
    cost: Mapping[str, float | int], source: Model, texts: Sequence[str], images: int, like: Query
) -> dict[str, float | int]:
    """Return the cost with that of the pictures to train on, generated as `like` by the un-erased model."""
    made = Cost()
    made.generated(source, [replace(like, prompt=texts[i % len(texts)], latents=None, start=0) for i in range(images)])
    return {name: cost[name] + own for name, own in vars(made).items()}


def _edit(attack: Tuning, edited: Model, delta: dict[str, Tensor], seed: int) -> Edit:
    """Return the differences as an edit of the model that the edit under attack was made on, so that both add up."""
    root = edited
    while root.origin is not None:
        root = root.origin[0]
    name = registry.name_of(type(attack))
    meta = {"format": 1, "method": name, "fields": registry.to_json(attack)["fields"], "seed": seed}
    return Edit(delta=delta, meta={**meta, "erase": [], "preserve": [], "base": root.base(delta)})


def _finding(
    attack: Tuning, target: Target, concept: Concept, queries: tuple[Query, ...], edit: Edit, history: list[float],
    texts: int,
) -> Finding:  # fmt: skip
    last = history[-max(1, len(history) // 10) :]
    scores = torch.full((len(queries),), -sum(last) / len(last))
    trained = attack.steps * attack.accumulate * attack.batch
    cost = Cost(calls=trained, backward=trained, texts=texts)
    if target.judge is not None:
        with edit.applied(target.edited) as changed:
            scores = seen(target, concept, queries, model=changed)
            cost.generated(changed, queries)
    best, values, order = ranked(queries, scores)
    norm = sum(float(d.double().square().sum()) for d in edit.delta.values()) ** 0.5
    about = {"loss": history, "norm": norm, "weights": sum(d.numel() for d in edit.delta.values())}
    return Finding(best, values, given=tuple(order), edit=edit, cost=vars(cost), about=about)


__all__ = ["Student", "Tuning", "tune", "with_pictures"]
