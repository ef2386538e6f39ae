"""Time the published model sizes with random weights: `python benchmarks/checkpoint_times.py [--update]`.

The time per step depends on the sizes alone, so random weights suffice. The prompt is short. Half-second clips are
generated with both guidance halves. Times include the text encoder but not the codec, and are given per second of clip.
Reading is one forward pass over given codes that records `resid_post` of every block.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Annotated, Any

import torch
import typer
from checkpoints import PAGE, RATE, SIZES, Size, shell
from pages import renewed
from tqdm.auto import tqdm

from audiolens import Add, AudioLens
from audiolens.etude.training.text import build_tokenizer

SECONDS, REPEATS = 0.5, 3
READ_SECONDS = 5
PROMPT = "a calm song with drums"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Sizes, such as small (default: small medium).")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 on a GPU.")] = "float32",
    rows: Annotated[list[int], typer.Option(help="Clips per batch.")] = [1, 8],  # noqa: B006 - typer copies it
    update: Annotated[bool, typer.Option(help=f"Write the table into docs/{PAGE.name}.")] = False,
) -> None:
    """Time generation and reading, and print or update the table."""
    wanted = [size for name in names or ["small", "medium"] for size in SIZES if size.name.endswith(f"musicgen-{name}")]
    lines = [
        "| size | rows | generating 1 s of every clip | the same with every block steered | "
        f"reading {READ_SECONDS} s of codes, all blocks recorded |",
        "|---|---|---|---|---|",
    ]
    for size in wanted:
        lens = AudioLens(random_model(size, device, dtype), build_tokenizer(), name=size.name)
        for count in rows:
            times = [*timed_second(lens, count), timed_reading(lens, count)]
            lines.append(f"| `{size.name}` | {count} | " + " | ".join(f"{one:.3g} s" for one in times) + " |")
            tqdm.write(lines[-1])
        del lens
        gc.collect()
    table = "\n".join(lines) + "\n"
    typer.echo(table)
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "times", table), "utf-8")


def random_model(size: Size, device: str, dtype: str) -> Any:
    """A model of a published size with random weights and the checkpoint's configuration."""
    model = shell(size).to(getattr(torch, dtype)).to_empty(device=device)
    torch.manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.normal_(0, 0.02)
        else:
            tensor.data.zero_()
    model.decoder.model.decoder.embed_positions.make_weights(2048, size.width)
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = generation.decoder_start_token_id = 2048
    generation.do_sample = True
    return model.eval()


def timed_second(lens: AudioLens, rows: int) -> tuple[float, float]:
    """Seconds per second of `rows` clips, unsteered and with every block steered: medians of alternating runs."""
    vector = torch.full((lens.config.d_model,), 1e-3)
    edits = [Add(vector, layers=list(range(lens.config.n_layers)))]

    def run(interventions: list[Add]) -> float:
        begun = time.perf_counter()
        lens.generate([PROMPT] * rows, SECONDS, interventions=interventions, guidance_scale=3.0, decode=False)
        if lens.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begun) / SECONDS

    times = [(run([]), run(edits)) for _ in range(REPEATS + 1)][1:]
    plain, steered = zip(*times, strict=True)
    return statistics.median(plain), statistics.median(steered)


def timed_reading(lens: AudioLens, rows: int) -> float:
    """Seconds for one forward pass over given codes with every block recorded."""
    codes = torch.randint(2048, (rows, lens.config.n_codebooks, READ_SECONDS * RATE))
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        lens.run_with_cache([PROMPT] * rows, codes)
        if lens.device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begun)
    return min(taken[1:])


if __name__ == "__main__":
    typer.run(main)
