"""A machine whose speed is known: for tests of planning."""

from dataclasses import dataclass

from masksmith.planning.choose import Tools
from masksmith.planning.cost import DataFacts

FACTS = DataFacts(
    train=2500,
    held_out=645,
    test=4000,
    hw=(101, 101),
    held_out_px=645 * 112**2,
    test_px=4000 * 112**2,
    channels=1,
    folds=5,
)


@dataclass
class Seconds:
    build_s: float = 1.0
    first_step_s: float = 1.0
    step_s: float = 0.3
    forward_s: float = 0.1


class Machine:
    """Speed by encoder, in pixels a second of training; prediction is four times as fast."""

    def __init__(self, *, pace=None, weights=("none",), device="cpu", largest=1024, openvino=None):
        self.pace = pace or {}
        self.weights, self.device, self.largest, self.openvino = weights, device, largest, openvino
        self.asked = []

    def measure(self, model, training, hw, batch):
        self.asked.append((model.encoder, hw, batch))
        step = hw[0] * hw[1] * batch / self.pace.get(model.encoder, 1e6)
        return Seconds(step_s=step, forward_s=step / 4)

    def weights_for(self, candidate, asked):
        wanted = "imagenet" if candidate.pretrained else "none"
        return wanted if wanted in self.weights else None

    def runtime(self, name, model, training, hw, batch):
        assert name == "openvino"
        if self.openvino is None:
            return None
        step = hw[0] * hw[1] * batch / self.pace.get(model.encoder, 1e6)
        return Seconds(build_s=2.0, forward_s=step / 4 / self.openvino)

    def tools(self):
        return Tools(
            measure=self.measure,
            weights_for=self.weights_for,
            resolve=lambda recipe: recipe,
            largest_batch=lambda recipe, facts: self.largest,
            runtime=self.runtime,
            device=self.device,
            measured_s=lambda: 0.0,
        )
