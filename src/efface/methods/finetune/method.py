"""Fine-tuning: what methods that train weights share, so that a method is little more than its loss.

A method defines its loss, the weights it trains and the source of z_t. There is one network in memory:
student, frozen base and moving average are views of the model that share all tensors but the trained ones;
the model's own weights are never written to.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from efface import registry
from efface.concept import Concept
from efface.context import Context
from efface.edits.edit import Edit
from efface.errors import BadInput
from efface.method import Fitted, Method
from efface.methods.finetune.parameters import select
from efface.methods.finetune.processes import processes
from efface.models.model import Model
from efface.models.students import view
from efface.training.checkpoints import State, checkpoints, current
from efface.training.loop import descend, generator, optimizer
from efface.util.ranges import COUNT, DECAY, RATE, ROWS, WEIGHT_OR_NONE, Ranges

Loss = Callable[[int], Tensor]  # number of the draw -> a number


@dataclass(frozen=True)
class FineTune(Method):
    """Base class of fine-tuning methods: train some weights of a model on a loss.

    Args:
        steps: steps of the optimiser
        lr: learning rate
        batch: noisy latents per forward pass
        accumulate: forward and backward passes per step, whose gradients are averaged: a large batch in the memory of
            a small one
        params: UNet weights to train: x (cross-attention), x-strict (its keys and values), notime (all but time
            embedding and output), u (the same without cross-attention), u-linear (linear and convolution layers
            outside cross-attention), selfattn, attn (both attentions), xlayer and selflayer (two blocks of each),
            to_out (output layers of both), full, or a pattern such as *mid_block*
        optimizer: adam, adamw or sgd
        weight_decay: the optimiser's weight decay
        clip: largest norm of the gradient, 0 for no limit
        gradient_checkpointing: recompute activations in the backward pass to save memory
        bf16: compute in bfloat16, where the processor supports it; weights and moments stay in float32
    """

    steps: int = 1000
    lr: float = 1e-5
    batch: int = 1
    accumulate: int = 1
    params: str = "x"
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0.0
    clip: float = 0.0
    gradient_checkpointing: bool = False
    bf16: bool = False

    RANGES: ClassVar[Ranges] = {
        "steps": COUNT, "batch": ROWS, "accumulate": COUNT, "lr": RATE, "weight_decay": DECAY,
        "clip": WEIGHT_OR_NONE,
    }  # fmt: skip

    QUICK: ClassVar[dict[str, Any]] = {"steps": 2}

    def __post_init__(self) -> None:
        super().__post_init__()

    def rates(self) -> dict[str, float]:
        """Return the sets of weights to train, apart from each other and each with its learning rate, `params` first.

        Weight decay is for the first one only.
        """
        return {self.params: self.lr}

    @abstractmethod
    def objective(self, run: "Run") -> Loss:
        """Return the loss as a function of the draw, counted from 0; contexts and images are prepared here, once.

        A step has `accumulate` draws. Both preparation and loss compute in bfloat16 if `bf16` is set.
        """

    def result(self, run: "Run") -> Fitted:
        """Return the edit after training, and by-products if any: by default student minus base."""
        return Edit(delta=run.delta(), meta=run.report())

    def fit(self, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int) -> Fitted:
        """Train and return the edit; the model's weights are not touched.

        Raises: BadInput, BadFile (checkpoint), Diverged, WriteError.
        """
        if model.dtype == torch.float16:
            raise BadInput("float16 loses small gradients: load the model in bf16 or fp32 to train it (--dtype bf16)")
        with torch.inference_mode(False), torch.enable_grad():
            run = Run(self, model, tuple(erase), tuple(preserve), seed)
            with run.autocast():
                loss = self.objective(run)
            run.descend(loss)
            return self.result(run)


class Run:
    """Hold the state of one training run: the networks, the optimiser, and helpers for losses.

    base, student: the frozen model and the one in training.
    average: the student's moving average, after `track_average`.
    erase, preserve, seed: as given to the method.
    rng: the random numbers of the current draw, on the CPU.
    weights: the student's trained parameters by name.
    null: the context of no prompt, one row.
    """

    def __init__(
        self, method: FineTune, model: Model, erase: tuple[Concept, ...], preserve: tuple[Concept, ...], seed: int
    ) -> None:
        self.rank, self.world = processes(model)
        self.method, self.erase, self.preserve, self.seed = method, erase, preserve, seed
        self.about = _describe(method, model, erase, preserve, seed) if current() else {}
        model = replace(model, guards=())
        sets = [(select(model, params), rate) for params, rate in method.rates().items()]
        chosen = {name: p for found, _ in sets for name, p in found.items()}
        self.base = view(model, {})
        self.student = view(model, {name: p.data.clone() for name, p in chosen.items()})
        if method.gradient_checkpointing:
            self.student.denoiser.enable_gradient_checkpointing()
        self.weights = {name: p.requires_grad_() for name, p in self.student.weights("").items() if name in chosen}
        # half-precision weights get a float32 master copy, or small steps would round away
        self.masters = {name: _master(p) for name, p in self.weights.items()}
        (main, lr), *others = [([self.masters[name] for name in found], rate) for found, rate in sets]
        opt = optimizer(method.optimizer, main, lr, method.weight_decay)
        for tensors, rate in others:
            opt.add_param_group({"params": tensors, "lr": rate, "weight_decay": 0.0})
        self.state = State({f"student.{name}": p for name, p in self.masters.items()}, {"main": opt})
        self.average, self.decay, self.means = self.student, 0.0, {}
        self.rng = generator(seed, "setup")
        with torch.no_grad():
            self.null = self.base.null().float()

    def contexts(self, texts: Iterable[str]) -> Context:
        """Encode prompts with the base model, without gradient."""
        with torch.no_grad():
            return self.base.encode(list(texts)).float()

    def noise(self, n: int) -> Float[Tensor, "n ch h w"]:
        """Draw n latents of pure noise."""
        return torch.randn(n, *self.base.latent_shape, generator=self.rng).to(self.base.device)

    def times(self, n: int) -> Int[Tensor, " n"]:
        """Draw n timesteps uniformly, as in training a diffusion model."""
        return self.base.family.schedule.random_times(n, self.rng).to(self.base.device)

    def pick(self, count: int, n: int) -> Int[Tensor, " n"]:
        """Draw n of the whole numbers below `count`."""
        return torch.randint(count, (n,), generator=self.rng).to(self.base.device)

    def track_average(self, decay: float) -> None:
        """Track an exponential moving average of the student from now on."""
        self.decay = decay
        self.means = {name: p.detach().clone() for name, p in self.masters.items()}
        self.average = view(self.base, {name: mean.to(self.weights[name].dtype) for name, mean in self.means.items()})
        self.state.tensors |= {f"average.{name}": mean for name, mean in self.means.items()}

    def once(self, stage: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the result of `make`, computed once; a resumed run reads it from its checkpoint folder.

        While `make` runs, `rng` is seeded by the run's seed and the stage.
        """

        def seeded() -> dict[str, Tensor]:
            self.rng = generator(self.seed, stage)
            return make()

        stored = current()
        return stored.once(stage, self.about, seeded) if stored else seeded()

    def note(self, name: str, value: float) -> None:
        """Record a number beside the loss of the current draw."""
        self.state.history.setdefault(name, []).append(value)

    def autocast(self) -> torch.autocast:
        """Return the context in which networks compute: bfloat16 if the method asks for it."""
        return torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.method.bf16)

    def descend(self, loss: Loss) -> None:
        """Run the training loop."""

        def seeded(draw: int) -> Tensor:
            self.rng = generator(self.seed, draw, self.rank)
            with self.autocast():
                return loss(draw)

        descend(
            seeded,
            self.state,
            self.method.steps,
            label=f"{registry.name_of(type(self.method))} {', '.join(c.name for c in self.erase)}",
            run=self.about,
            clip=self.method.clip,
            gradients=self._gather,
            updated=self._move,
            resumed=self._publish,
            saves=self.rank == 0,
            accumulate=self.method.accumulate,
        )
        self.state.release()

    def delta(self, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the trained weights (or `values` for them) minus the base's, float32 on the CPU."""
        old, new = self.base.weights(""), self.masters if values is None else values
        return {name: (new[name].detach().float() - old[name].detach().float()).cpu() for name in self.weights}

    def report(self) -> dict[str, Any]:
        """Return the report of the training: about 100 losses and notes, and the number of trained weights."""
        shown = {name: values[:: max(1, len(values) // 100)] for name, values in self.state.history.items()}
        return {"training": {**shown, "parameters": sum(p.numel() for p in self.weights.values())}}

    def _gather(self) -> None:
        """Copy the gradients to the master copies, averaged over processes."""
        for name, p in self.weights.items():
            master = self.masters[name]
            if master is not p:
                master.grad, p.grad = None if p.grad is None else p.grad.float(), None
            if master.grad is not None:
                master.grad = self.mean(master.grad)

    def mean(self, gradient: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.world == 1:
            return gradient
        from accelerate.utils import reduce

        return reduce(gradient, "mean")  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def _move(self) -> None:
        """Update the average and copy both into the networks."""
        for name, mean in self.means.items():
            mean.lerp_(self.masters[name], 1 - self.decay)
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        """Copy master copies and average into the networks, where they are not the same tensors."""
        average = self.average.weights("") if self.means else {}
        for name, p in self.weights.items():
            p.copy_(self.masters[name])
            if average:
                average[name].copy_(self.means[name])


def prompts_of(concept: Concept, which: Literal["name", "all"]) -> tuple[str, ...]:
    """Return the prompts by which a method erases a concept: its bare name, or its name and its prompts."""
    return (concept.name,) if which == "name" else (concept.name, *concept.texts)


def _master(p: Tensor) -> Tensor:
    return p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())


def _describe(
    method: FineTune, model: Model, erase: Sequence[Concept], preserve: Sequence[Concept], seed: int
) -> dict[str, Any]:
    """Return the description of a run, which a checkpoint must equal to be resumed."""
    plain = registry.to_json(method)
    concepts = {"erase": [c.to_json() for c in erase], "preserve": [c.to_json() for c in preserve]}
    return {"method": plain["name"], **plain["fields"], **concepts, "seed": seed, "model": model.id}


__all__ = ["FineTune", "Loss", "Run", "checkpoints", "prompts_of"]
