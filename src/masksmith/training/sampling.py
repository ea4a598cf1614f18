"""The state that samplers need between steps: losses of images, and of the last steps. It lies in the checkpoint."""

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from masksmith.augment import with_copies
from masksmith.core.arrays import Int
from masksmith.core.randomness import stream
from masksmith.training.config import SamplerConfig, Stage, TrainingConfig
from masksmith.training.corrections import drawn_again
from masksmith.training.data import FoldData
from masksmith.training.epochs import Epoch
from masksmith.training.samplers import (
    Draw,
    ImageFacts,
    draw_order,
    image_facts,
    is_repeat,
    refuse_impossible,
)


class Sampling:
    """Draws the images of each epoch, and remembers the losses that later draws depend on."""

    def __init__(self, config: TrainingConfig, data: FoldData, device: torch.device) -> None:
        """Check the samplers of all stages.

        Raises:
            InputError: One asks for images that are not there.
        """
        self.data, self._flips = data, config.augment.append_flips
        self._stages = config.stages
        self._windows = [np.array(data.windows(config, stage)) for stage in config.stages]
        self._samplers = [stage.sampler or config.sampler for stage in config.stages]
        self.by_loss = any(one.name == "curriculum" and one.by == "loss" for one in self._samplers)
        # what an epoch is drawn from must not change while it runs, or a resumed one would be another
        pseudo = 0 if data.pseudo is None else len(data.pseudo.ids)
        self._taken = np.array([data.taken.get(name, 1.0) for name in data.ids] + [1.0] * pseudo)
        self._before = torch.full((len(data.ids) + pseudo,), torch.inf, device=device)
        self._seen = self._before.clone()
        self._parts = [torch.from_numpy(self._part(stage)).to(device) for stage in config.stages]
        self._recent = torch.zeros(max(one.repeat_worst_of or 1 for one in self._samplers), device=device)
        self._repeats = any(one.repeat_worst_of for one in self._samplers)
        for i, (stage, sampler) in enumerate(zip(config.stages, self._samplers, strict=True)):
            if sampler.name in ("non_empty", "weighted"):
                where = "training.sampler" if stage.sampler is None else f"training.stages[{i}].sampler"
                refuse_impossible(sampler, self.facts_of(stage), where=where)

    @cached_property
    def facts(self) -> ImageFacts:
        """Coverage of all images, those with pseudo-labels last, read from their masks once."""
        parts = [self.data] if self.data.pseudo is None else [self.data, self.data.pseudo]
        each = [image_facts(part.masks, part.ids) for part in parts]
        coverage = np.concatenate([one.coverage for one in each])
        return ImageFacts(coverage, np.concatenate([one.classes for one in each]))

    def facts_of(self, stage: Stage) -> ImageFacts:
        """Coverage of the images that a stage is trained on."""
        part = self._part(stage)
        return ImageFacts(self.facts.coverage[part], self.facts.classes[part])

    def _part(self, stage: Stage) -> Int[np.ndarray, " n"]:
        """Return the positions among all images of those that a stage is trained on."""
        labelled = len(self.data.ids)
        part = {"labelled": slice(labelled), "pseudo": slice(labelled, None), "both": slice(None)}[stage.data]
        places = np.arange(len(self._seen))[part]
        picked = self.data.picked(stage)
        return places if picked is None else places[picked]

    def of(self, epoch: Epoch) -> SamplerConfig:
        """Return the sampler of an epoch."""
        return self._samplers[epoch.stage]

    def order(self, epoch: Epoch) -> Int[np.ndarray, " drawn"]:
        """Return the positions of an epoch's images, drawn by counter."""
        stage = self._stages[epoch.stage]
        sampler, num, windows = self.of(epoch), len(self.data.of(stage).ids), self._windows[epoch.stage]
        rng = stream(self.data.seed, self.data.fold, epoch.stage, epoch.number)
        taken = self._taken[self._part(stage)]
        if sampler.name == "plain":  # the masks need not be read for it
            places = np.arange(with_copies(num, self._flips))
            order = rng.permutation(np.repeat(places, np.tile(windows, len(places) // num)))
            return drawn_again(order, taken, rng)
        losses = self._before[self._parts[epoch.stage]].cpu().numpy().astype(np.float64)
        draw, most = Draw(self.facts_of(stage), losses, epoch.stage_at, rng), int(windows.sum())

        def drawn() -> Int[np.ndarray, " drawn"]:
            """As many images as there are, again and again until each window has one."""
            return np.concatenate([draw_order(sampler, draw) for _ in range(-(-most // num))])[:most]

        if not self._flips:
            return drawn_again(drawn(), taken, rng)
        order = rng.permutation(np.concatenate([drawn(), num + drawn()]))  # images, and mirrored copies
        return drawn_again(order, taken, rng)

    def note(self, epoch: Epoch, indices: list[int], losses: Float[Tensor, " b"]) -> None:
        """Remember the losses of images of an epoch."""
        part = self._parts[epoch.stage]
        self._seen[part[torch.tensor(indices, device=part.device) % len(part)]] = losses

    def note_step(self, epoch: Epoch, step: int, loss: Tensor) -> None:
        """Remember the loss of a new step, for the choice of the worst."""
        repeat = self.of(epoch).repeat_worst_of
        if repeat and not is_repeat(step, repeat):
            self._recent[step % (repeat + 1)] = loss

    def worst(self, repeat_worst_of: int) -> int:
        """Return the place of the largest loss among the last steps; the first of equal ones."""
        return int(self._recent[:repeat_worst_of].argmax().item())  # the device is waited for once a group

    def end_epoch(self) -> None:
        """Let the next epoch be drawn from the losses that this one has seen."""
        self._before = self._seen.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs."""
        losses = {"sampling/before": self._before, "sampling/seen": self._seen} if self.by_loss else {}
        return losses | ({"sampling/recent": self._recent} if self._repeats else {})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what ``tensors`` returned, given without the first part of the names."""
        for name, own in (("before", self._before), ("seen", self._seen), ("recent", self._recent)):
            if name in tensors:
                own.copy_(tensors[name])
