"""Compare rules for choosing a place on several models: `python benchmarks/placement_rules.py run MODEL...`.

The rules and the score are those of docs/placement.md. For every model and concept, directions are read on shared codes
of the placement prompts, every rule names its place, and the model is then steered by brute force (`brute_force.py`) on
other development prompts. `cost` only prints how many clips this takes. `report` scores the finished concepts, chooses
a rule on some models and reports all rules on the others (`placement_scores.py`); with `--update` it stores what was
measured in docs/placement/, and writes the tables of all models that were ever stored into docs/placement.md. Models
can therefore be swept one by one. A stopped run resumes. `--every 2 --seeds 2` thins the sweep for small machines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import placement_scores
import typer
from brute_force import OWN, SHARE, Sweeps, failure_of
from pages import renewed

from analysis import placement
from analysis.placement.other_evidence import Computable, generated_steps
from analysis.placement.rules import middle, spread
from analysis.workers import share_cores
from audiolens import AudioLens, Directions, difference_in_means
from audiolens.directions.strategies import Strategy
from audiolens.errors import InputError
from audiolens.etude import synth
from audiolens.etude.form import SIX_TONICS, Music
from audiolens.etude.training.instruments import Instruments, cepstra, decoded, synthesised
from audiolens.files.atomic import put
from audiolens.prompts import load

CONCEPTS = (*OWN, "pluck", "organ", "strings", "bells")
EVERY_CONCEPT = ",".join(CONCEPTS)
STRENGTHS = (0.5, 1.0, 2.0)
"""Strengths of one block's own direction. At all n blocks, each is divided by n."""
READ = 48
READ_SECONDS, PLACE_SECONDS = 2.0, 2.0
CONFIRM = 8
FULL = (8, 4, 5.0)
"""Prompts, seeds and seconds of the sweep to which costs are relative."""
PAGE = Path(__file__).parent.parent / "docs" / "placement.md"
STORED = PAGE.with_suffix("")
OUT = Path("runs/placement-rules")

app = typer.Typer(add_completion=False, help="Compare rules for choosing a place on several models.")
Models = Annotated[list[str], typer.Argument(help="Names or folders of models.")]
Out = Annotated[Path, typer.Option(help="Folder of the sweeps (resumable) and tables, with a folder per model.")]
Concepts = Annotated[str, typer.Option(help="Concepts, separated by commas.")]
Prompts = Annotated[int, typer.Option(help="Development prompts that are steered; placement uses as many others.")]
Seeds = Annotated[int, typer.Option(help="Seeds per prompt, an even number.")]
Seconds = Annotated[float, typer.Option(help="Length of each clip.")]
Every = Annotated[int, typer.Option(help="Steer every n-th block, and those that fixed rules name.")]


@dataclass(frozen=True)
class Setting:
    """The size of the sweeps of a model."""

    prompts: int
    seeds: int
    seconds: float
    every: int

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.seeds % 2 or self.prompts < 2 or self.every < 1:
            raise typer.BadParameter("expected an even number of seeds, two or more prompts, and --every of 1 or more.")

    def blocks(self, n_layers: int) -> list[int]:
        """The blocks whose vectors are candidates."""
        named = {layer for _, layer in (middle(n_layers), *spread(n_layers))}
        return sorted({*range(0, n_layers, self.every), *named})

    def clips(self, n_layers: int) -> dict[str, int]:
        """The number of clips per concept in each part of an experiment; some parts may be smaller."""
        places, clips = 2 * len(self.blocks(n_layers)), self.prompts * self.seeds
        return {
            "sweep": (1 + 2 * len(STRENGTHS) * places) * clips, "doubled strengths up to": (1 + 2 * places) * clips,
            "words": 3 * clips, "confirmed up to": 35 * CONFIRM,
        }  # fmt: skip

    def keep(self, file: Path, lens: AudioLens) -> None:
        """Write the setting next to a model's sweeps, or refuse sweeps of another one."""
        facts = {**asdict(self), "n_layers": lens.config.n_layers}
        if file.is_file() and json.loads(file.read_text("utf-8")) != facts:
            raise typer.BadParameter(f"{file} states another setting: use that one, or another --out.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(facts), "utf-8")


@app.command()
def cost(
    models: Models, prompts: Prompts = 8, seeds: Seeds = 4, seconds: Seconds = 5.0, every: Every = 1
) -> None:  # fmt: skip
    """Print the number of clips per model and concept, and generate none."""
    setting = Setting(prompts, seeds, seconds, every)
    for model in models:
        n_layers = AudioLens.from_pretrained(model).config.n_layers
        parts = setting.clips(n_layers)
        told = ", ".join(f"{name} {count:,}" for name, count in parts.items())
        blocks = ", ".join(map(str, setting.blocks(n_layers)))
        typer.echo(f"{model}: at most {sum(parts.values()):,} clips of {seconds:g} s per concept ({told}).")
        typer.echo(f"  steered are {len(setting.blocks(n_layers))} of {n_layers} blocks: {blocks}")


@app.command()
def run(
    models: Models, out: Out = OUT, concepts: Concepts = EVERY_CONCEPT, prompts: Prompts = 8, seeds: Seeds = 4,
    seconds: Seconds = 5.0, every: Every = 1,
    jobs: Annotated[int | None, typer.Option(help="Processes that generate; 0: this one [default: all cores].")] = None,
) -> None:  # fmt: skip
    """Run the rules and the brute-force sweeps, and resume those that were stopped."""
    setting, listed = Setting(prompts, seeds, seconds, every), concepts.split(",")
    if unknown := [concept for concept in listed if concept not in CONCEPTS]:
        raise typer.BadParameter(f"no concept {unknown[0]!r}: choose from {', '.join(CONCEPTS)}.")
    share_cores()
    for model in models:
        lens = AudioLens.from_pretrained(model)
        folder = out / placement_scores.label(model)
        setting.keep(folder / placement_scores.SETTING, lens)
        on = Experiment(lens, folder, setting, jobs)
        for concept in listed:
            on.run(concept)


@app.command()
def report(
    out: Out = OUT,
    chosen_on: Annotated[str, typer.Option(help="Models on which a rule is chosen, separated by commas.")] = (
        "etude,etude-2"
    ),
    draws: Annotated[int, typer.Option(help="Resamples of the prompts.")] = placement_scores.DRAWS,
    update: Annotated[bool, typer.Option(help="Store the sweeps in docs/placement/, and write the tables.")] = False,
) -> None:
    """Score every rule on the finished models and concepts in OUT, and on those that were stored before."""
    found = placement_scores.joined(placement_scores.stored(STORED), placement_scores.gathered(out))
    text = placement_scores.page(found, chosen_on.split(","), draws)
    out.mkdir(parents=True, exist_ok=True)
    (out / "placement-rules.md").write_text(text, "utf-8")
    if update:
        placement_scores.store(found, STORED)
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "rules", text), "utf-8")
    typer.echo(text)


@dataclass(frozen=True)
class Experiment:
    """The rules and sweeps of one model."""

    lens: AudioLens
    folder: Path
    setting: Setting
    n_jobs: int | None

    def run(self, concept: str) -> None:
        """Run what is not finished: directions, the choices of the rules, the sweeps, and the clips asked in words."""
        mine = self.folder / concept
        done, evidence = mine / placement_scores.DONE, mine / placement_scores.EVIDENCE_FILE
        if done.is_file() and evidence.is_file():
            typer.echo(f"{self.folder.name}, {concept}: finished before")
            return
        mine.mkdir(parents=True, exist_ok=True)
        directions = self.directions(concept, mine / "directions.safetensors")
        if not evidence.is_file():
            _write(evidence, self.evidence(concept, directions))
        if done.is_file():
            return
        choices = mine / placement_scores.CHOICES
        if not choices.is_file():
            # Rules run before anything is steered for the sweep, on prompts that the sweep does not use.
            _write(choices, self.chosen(concept, directions))
        typer.echo(f"{self.folder.name}, {concept}: {json.loads(choices.read_text('utf-8'))['choices']}")
        n_layers = self.lens.config.n_layers
        strengths: dict[Strategy, tuple[float, ...]] = {
            "one-to-one": STRENGTHS, "one-to-all": tuple(one / n_layers for one in STRENGTHS),
        }  # fmt: skip
        instrument = concept not in OWN
        sweeps = Sweeps(
            self.lens, mine, self.setting.prompts, self.setting.seeds, self.setting.seconds, strengths,
            ["loudness"] if instrument else [OWN[concept]],
            {SHARE: lambda _, clips: self.taken_for(concept)(clips)} if instrument else None, self.n_jobs,
        )  # fmt: skip
        sweeps.steered(concept, directions.at(self.setting.blocks(n_layers)), failure_of(concept))
        sweeps.prompted(concept)
        _write(done, {"measure": SHARE if instrument else OWN[concept]})

    def others(self, concept: str) -> list[str]:
        """The development prompts of the rules."""
        return list(load(concept, lens=self.lens).development[self.setting.prompts : 2 * self.setting.prompts])

    def directions(self, concept: str, file: Path) -> Directions:
        """The directions on shared codes of the placement prompts, which are kept in a file."""
        if file.is_file():
            return Directions.load(file, lens=self.lens)
        sets = load(concept, lens=self.lens)
        read = min(READ, len(sets.positive), len(sets.negative))
        found = difference_in_means(
            self.lens, sets.positive[:read], sets.negative[:read], codes="shared", neutral=self.others(concept),
            seeds=list(range(read)), seconds=READ_SECONDS, label=concept,
        )  # fmt: skip
        found.save(file)
        return found

    def plain(self, concept: str) -> dict[str, Any]:
        """What all placements of a concept have in common."""
        others = self.others(concept)
        codes = self.lens.generate(others, PLACE_SECONDS, seeds=list(range(len(others))), decode=False).codes
        return {
            "prompts": others, "codes": codes, "layers": self.setting.blocks(self.lens.config.n_layers), "compute": (),
            "n_random": 0, "screen_seconds": 0, "progress": False,
        }  # fmt: skip

    def evidence(self, concept: str, directions: Directions) -> dict[str, Any]:
        """The block with the largest value of each kind of evidence, and why a kind has none."""
        sets, n_layers = load(concept, lens=self.lens), self.lens.config.n_layers
        asked = {**self.plain(concept), "compute": get_args(Computable), "n_bootstrap": 0}
        blocks = {"middle": middle(n_layers)[1]}
        try:
            placed = placement.place(self.lens, sets, directions.at(self.setting.blocks(n_layers)), **asked)
        except InputError as error:
            return {"blocks": blocks, "left_out": {"evidence": str(error)}}
        for one in placed.evidence.evidence:
            if np.isfinite(one.values).any():
                blocks[one.name] = one.layers[int(np.nanargmax(one.values))]
        return {"blocks": blocks, "left_out": dict(placed.left_out)}

    def chosen(self, concept: str, directions: Directions) -> dict[str, Any]:
        """The choice and the cost of every rule, and why a rule has none."""
        sets, others, plain = load(concept, lens=self.lens), self.others(concept), self.plain(concept)
        measured = OWN.get(concept) or self.taken_for(concept)
        choices, costs, left_out, facts = {}, {}, {}, {}
        # The first of these that works also names the places of the fixed rules.
        ways: dict[str, dict[str, Any]] = {
            "equal_damage": {"by": "equal_damage"}, "confirmed": {"confirm": CONFIRM, "measured": measured},
            "alignment": {},
        }  # fmt: skip
        for rule, asked in ways.items():
            if rule in choices:
                continue
            try:
                placed = placement.place(self.lens, sets, directions, **plain, **asked)
            except InputError as error:
                left_out[rule] = str(error)
                continue
            choices, costs = {**placed.choices, **choices}, {**placed.costs, **costs}
            facts.setdefault("constancy", placed.constancy)
            facts.setdefault("places", _records(placed.candidates))
            if placed.heard is not None:
                facts |= {"heard": _records(placed.heard), "n_heard": placed.n_heard}
        reading = generated_steps(self.lens, 2 * READ, READ_SECONDS)
        drawing = generated_steps(self.lens, len(others), PLACE_SECONDS)
        n_prompts, n_seeds, seconds = FULL
        full = (1 + 4 * len(STRENGTHS) * len(plain["layers"])) * n_prompts * n_seeds
        return {
            "choices": choices, "left_out": left_out, **facts,
            "costs": {rule: own + reading + (0 if rule == "middle" else drawing) for rule, own in costs.items()},
            "sweep_row_steps": generated_steps(self.lens, full, seconds),
        }  # fmt: skip

    def taken_for(self, concept: str) -> Callable[[Any], Any]:
        """A function that returns 1 for clips that are taken for the instrument, and otherwise 0."""

        def share(clips: Any) -> Any:
            features = cepstra(decoded(self.lens, clips.codes), self.lens.config.sample_rate)
            return np.array([float(name == concept) for name in self.instruments.named(features)])

        return share

    @cached_property
    def instruments(self) -> Instruments:
        """A classifier of the instruments, fitted on the music of all études."""
        parts = [synthesised(self.lens, 240, 5.0, music) for music in (synth.BUNDLED, Music(SIX_TONICS, "aaba", True))]
        features = [cepstra(audio, self.lens.config.sample_rate) for _, audio in parts]
        return Instruments.fitted(
            np.concatenate(features), [clip.attributes.instrument for clips, _ in parts for clip in clips]
        )


def _records(table: Any) -> list[dict[str, Any]]:
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _write(file: Path, facts: Any) -> None:
    put(file, json.dumps(facts, indent=1).encode())


if __name__ == "__main__":
    app()
