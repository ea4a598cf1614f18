"""Images a second of every recipe on this machine: training steps and predictions at its largest canvas.

    python benchmarks/throughput.py [RECIPE …] [--image-hw 101 101] [--pixels 524288] [--threads 2]

Each recipe is measured in a process of its own, from random weights and on random images: one step to warm up, then
three; the same of forward passes. A batch holds the recipe's own number of images, or as many as make ``--pixels``
pixels, and at least two. ``--image-hw`` is the size of the images for the recipes that set none and cut no windows.
An ensemble is its members. Memory is the largest resident set of the process, at that batch.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = 3


def timed(action):
    """Return the median, least and most seconds of ``action``, after one to warm up."""
    action()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times), min(times), max(times)


def measure(name, image_hw, pixels, threads):
    import masksmith  # noqa: F401  (its guard, before torch)
    from masksmith.models.encoders import settle_encoder
    from masksmith.planning.timings import Stepper
    from masksmith.preprocess import canvas_of
    from masksmith.recipes.recipe import load_recipe
    from masksmith.training.machine import settle_machine

    recipe = load_recipe(name, (f"training.threads={threads}", "training.start_run=null"))
    encoder = recipe.model.encoder
    if encoder == "auto":
        encoder = settle_encoder("auto", "none").encoder
    model = recipe.model.model_copy(update={"encoder": encoder, "encoder_weights": "none"})
    config = settle_machine(recipe.training)
    scale, stage = max(((stage.scale, stage) for stage in config.stages), key=lambda pair: pair[0])
    canvas_hw = canvas_of(
        recipe.size, [config.crop_hw or image_hw], divisor=model.divisor, scale=scale, crop_hw=config.crop_hw
    )
    own = config.batches_of(stage)[0]
    batch_size = min(own, max(2, pixels // (canvas_hw[0] * canvas_hw[1])))
    stepper = Stepper(
        model,
        config,
        in_channels=recipe.input.channels(1),
        canvas_hw=canvas_hw,
        batch_size=batch_size,
        loss=stage.loss,
    )
    return {
        "encoder": encoder,
        "canvas_hw": canvas_hw,
        "batch_size": batch_size,
        "own_batch_size": own,
        "weights": sum(weight.numel() for weight in stepper.raw.parameters()),
        "precision": config.precision,
        "step_s": timed(stepper.step),
        "forward_s": timed(stepper.forward),
        "memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def line(name, facts):
    def rate(seconds):
        median, least, most = (facts["batch_size"] / value for value in seconds)
        return f"{median:8.2f} ({most:.2f} to {least:.2f})"

    height, width = facts["canvas_hw"]
    batch = f"{facts['batch_size']} of {facts['own_batch_size']}"
    return (
        f"{name:26s} {height}x{width}".ljust(38)
        + f"{batch:>9s} {facts['weights'] / 1e6:7.1f}M {rate(facts['step_s']):>26s} {rate(facts['forward_s']):>26s} "
        f"{facts['memory_gib']:6.1f} GiB  {facts['precision']}"
    )


def main():
    from masksmith.recipes.sources import list_recipes

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*")
    parser.add_argument("--image-hw", nargs=2, type=int, default=[101, 101])
    parser.add_argument("--pixels", type=int, default=2 * 512 * 512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        (name,) = options.recipes
        print(json.dumps(measure(name, tuple(options.image_hw), options.pixels, options.threads)))
        return
    print(
        f"{'recipe, canvas':38s}{'batch':>9s} {'weights':>8s} {'training, images/s':>26s} {'prediction':>26s}"
    )
    size = [str(value) for value in options.image_hw]
    words = ["--one", "--image-hw", *size, "--pixels", str(options.pixels), "--threads", str(options.threads)]
    for name in options.recipes or [listing.name for listing in list_recipes() if listing.kind == "recipe"]:
        done = subprocess.run([sys.executable, __file__, name, *words], capture_output=True, text=True)
        if done.returncode:
            print(f"{name:26s} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
            continue
        print(line(name, json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
