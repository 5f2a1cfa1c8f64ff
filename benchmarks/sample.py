"""Draw images with our preallocated cache, compared with Hugging Face's `generate` at the same weights and batch.

    python -m benchmarks.sample                             # CPU, 6 layers, width 256, 16x16 and 32x32
    python -m benchmarks.sample --device cuda               # GPU: 256 images of 32x32 with S in bfloat16

The bound is the time it takes to read what each step needs: the weights once, and the keys and values so far.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.measure import RESULTS
from benchmarks.measure_device import interleave, machine, memory_bandwidth, ratio, save
from benchmarks.peers import hugging_face, our_model
from igpt_model.config import PretrainConfig
from igpt_model.inference.sample import Drawing, draw
from igpt_model.model.config import ModelConfig, preset_shape
from igpt_model.model.network import KeyValueCache
from igpt_model.training.parallel import prepare_blocks

_NEVER_SPLIT = 1 << 50  # bytes; the user chooses a batch that fits


def bytes_read(config: ModelConfig, batch: int, dtype: torch.dtype) -> int:
    """The minimum of bytes that drawing a batch reads: at each position the matrices, and the cache filled so far."""
    matrices = 12 * config.layers * config.width**2 + config.colours * config.width
    steps = config.positions
    filled = KeyValueCache.bytes_per_image(config, dtype) // config.positions * (steps * (steps + 1) // 2)
    return steps * matrices * dtype.itemsize + batch * filled


def contenders(
    config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype, names: list[str]
) -> dict[str, Callable[[], torch.Tensor]]:
    """For each contender, a function that draws a batch of whole images."""
    made: dict[str, Callable[[], torch.Tensor]] = {}
    for name in names:
        ours = our_model(config, device)
        if name == "Hugging Face":
            theirs = hugging_face(ours).to(dtype).eval()
            start_B1 = torch.full((batch, 1), config.colours, device=device)
            made[name] = lambda m=theirs, start=start_B1: _generate(m, start, config)
        else:
            ours = ours.to(dtype).eval()
            if "compiled" in name:
                prepare_blocks(ours, PretrainConfig.from_fields(runs="unused", compile=True))
            made[name] = lambda m=ours: draw(m, batch, Drawing(), cache_bytes=_NEVER_SPLIT)
    return made


@torch.inference_mode()
def _generate(model: torch.nn.Module, start_B1: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Hugging Face's own loop with its cache, sampling from the whole distribution as ours does."""
    drawn = model.generate(
        input_ids=start_B1, max_new_tokens=config.positions, do_sample=True, temperature=1.0, top_k=0, use_cache=True
    )
    return drawn[:, 1:]


def measure(
    config: ModelConfig, batch: int, device: torch.device, dtype: torch.dtype, names: list[str], rounds: int
) -> list[dict[str, object]]:
    """A row for each contender."""
    runs = contenders(config, batch, device, dtype, names)
    for name, run in runs.items():
        drawn = run()
        assert drawn.shape == (batch, config.positions) and int(drawn.max()) < config.colours, name
    seconds = interleave(runs, rounds, device)
    bound = bytes_read(config, batch, dtype) / memory_bandwidth(device)
    return [
        {
            "layers, width, side": f"{config.layers}, {config.width}, {config.resolution}",
            "images": batch,
            "contender": name,
            "seconds": min(measured),
            "of the bandwidth bound": f"{bound / min(measured):.0%}",
            f"times longer than {names[0]}": ratio(measured, seconds[names[0]]),
            "_seconds": measured,
        }
        for name, measured in seconds.items()
    ]


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--preset", default=None, help="default: S on a GPU, else the layers, width and heads below")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--resolutions", type=int, nargs="*", default=None)
    parser.add_argument("--batches", type=int, nargs="*", default=None)
    parser.add_argument("--precision", default=None, choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="also measure our model with compiled blocks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, default=None, help="result files, without extension")
    options = parser.parse_args()
    device, on_gpu = torch.device(options.device), options.device == "cuda"
    if options.threads:
        torch.set_num_threads(options.threads)
    described = machine(device)
    precision = options.precision or ("bfloat16" if on_gpu else "float32")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    preset = options.preset or ("igpt-s" if on_gpu else None)
    names = ["ours", "Hugging Face"] + (["ours compiled"] if options.compile or on_gpu else [])
    rows: list[dict[str, object]] = []
    for resolution in options.resolutions or ([32] if on_gpu else [16, 32]):
        layers, width, heads = options.layers, options.width, options.heads
        if preset is not None:
            shape = preset_shape(preset)
            layers, width, heads = shape.layers, shape.width, shape.heads
        config = ModelConfig(layers=layers, width=width, heads=heads, resolution=resolution, colours=512)
        for batch in options.batches or ([256] if on_gpu else [8, 32]):
            rows += measure(config, batch, device, dtype, names, options.rounds)
    notes = (
        f"Whole images, {precision}, 512 colours, drawn from the whole distribution. A sum over "
        f"memory reads {memory_bandwidth(device) / 1e9:,.0f} GB/s on this device."
    )
    save(options.output or RESULTS / f"sample-{options.device}", "Drawing images", described, rows, notes)


if __name__ == "__main__":
    main()
