"""The recipes of the études: everything that decides what a training run produces, as values.

`etude-0` is the bundled étude. All others are variations of one base, `etude`, and share its codec, corpus and codes:

- `etude-2` and `etude-3` differ from `etude` in the seeds of the weights and of the order of the data;
- `etude-plain` has neither the auxiliary head nor a pre-trained text encoder;
- `etude-melody` has the form of MusicGen Melody, in which the text stands in the decoder's own sequence;
- `etude-deep` has 24 narrow blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from audiolens.checks import shown
from audiolens.errors import InputError, nearest
from audiolens.etude import synth
from audiolens.etude.form import SIX_TONICS, Music
from audiolens.etude.training import codec, decoder
from audiolens.etude.training.text import Reading
from audiolens.etude.words import RICH


@dataclass(frozen=True)
class Material:
    """What several études share: the music, the codec trained on it, and the corpus that the codec encodes.

    Attributes:
        name: the folder of sound, codec and codes in the working folder of a run.
        music: what the synthesiser may choose.
        seconds: the length of a clip.
        codebooks: the number of codebooks.
        schedule: how the codec is trained.
        codec_clips: the number of clips that the codec is trained on.
        codec_seed: the seed of these clips.
        clips: the number of clips in the decoder's corpus.
        seed: the seed of the corpus.
        half: whether the codec is rounded to half precision before it encodes the corpus, so that it can be stored in
            half precision without changing a code.
    """

    name: str
    music: Music = synth.BUNDLED
    seconds: float = synth.CLIP_SECONDS
    codebooks: int = codec.N_CODEBOOKS
    schedule: codec.TrainingSchedule = field(default_factory=codec.TrainingSchedule)
    codec_clips: int = 2000
    codec_seed: int = 1
    clips: int = 24_576
    seed: int = 2
    half: bool = False


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run produces.

    Attributes:
        name: the name of the model.
        material: the music, the codec and the corpus.
        reading: the words of captions, the tokenizer, and how the text encoder is pre-trained.
        form: the form of the decoder.
        schedule: how the decoder is trained.
        weights_seed: the seed of the first weights of text encoder and decoder. `None` continues the random numbers
            with which the codec was built.
    """

    name: str
    material: Material
    reading: Reading = field(default_factory=Reading)
    form: decoder.Form = field(default_factory=decoder.Form)
    schedule: decoder.TrainingSchedule = field(default_factory=decoder.TrainingSchedule)
    weights_seed: int | None = None

    @property
    def half(self) -> bool:
        """Whether the finished model is stored in half precision."""
        return self.material.half


BUNDLED = Recipe("etude-0", Material("bundled"))
"""The bundled étude: clips of 5 seconds in two keys, four codebooks, and a tokenizer of whole words."""
BASE = Recipe(
    "etude",
    Material(
        "etudes",
        music=Music(SIX_TONICS, form="aaba", scenes=True),
        seconds=10.24,
        codebooks=8,
        schedule=codec.TrainingSchedule(
            autoencoder=700, joint=3300, decoder=1200, decoder_rate=5e-4, waveform=1.0, decoder_waveform=2.0,
            waveform_per_clip=True, mel=1.0, bfloat16=True,
        ),
        codec_seed=101,
        clips=8_192,
        seed=102,
        half=True,
    ),
    Reading(RICH, subwords=True),
    decoder.Form(codebooks=8, frames=256, masks_text=True),
    decoder.TrainingSchedule(
        steps=9_000, crop_frames=(64, 128, 256), crop_shares=(0.3, 0.35, 0.35), crop_rows=(16, 16, 8), bfloat16=True,
        codebook_weights=(2.0, 1.0, 0.7, 0.5, 0.35, 0.25, 0.2, 0.15),
    ),
    weights_seed=1,
)  # fmt: skip
"""Clips of 10 seconds in six keys and the form A A B A, eight codebooks, synonyms, and a subword tokenizer."""


def _reseeded(recipe: Recipe, name: str, seed: int) -> Recipe:
    """The same recipe with other first weights and another order of the data."""
    return replace(recipe, name=name, weights_seed=seed, schedule=replace(recipe.schedule, seed=seed))


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            BUNDLED,
            BASE,
            _reseeded(BASE, "etude-2", 2),
            _reseeded(BASE, "etude-3", 3),
            replace(
                BASE,
                name="etude-plain",
                reading=replace(BASE.reading, steps=0),
                schedule=replace(BASE.schedule, listening_weight=0.0),
            ),
            replace(BASE, name="etude-melody", form=replace(BASE.form, chroma_frames=8)),
            replace(BASE, name="etude-deep", form=replace(BASE.form, blocks=24, width=112, heads=4)),
        )
    }
)
"""The recipes by the names of their models."""


def named(name: str) -> Recipe:
    """The recipe of a model.

    Raises:
        InputError: if there is no recipe of this name.
    """
    if name not in RECIPES:
        raise InputError(f"no recipe {shown(name)}: expected one of {', '.join(RECIPES)}.{nearest(name, [*RECIPES])}")
    return RECIPES[name]
