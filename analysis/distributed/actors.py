"""What runs in the workers on a Ray cluster: one class that holds a model, and one that measures clips.

Ray makes actors of these classes, starts them again after they were killed, and repeats the call that was lost.
Everything that could fail therefore happens in the calls and not when an object is made. A worker that was started
again, perhaps on another machine, opens the model and checks it again.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from analysis.distributed.backend import Work
from analysis.heard import Heard, Wanted, hear, one_thread, sound_of
from analysis.store.versions import versions
from analysis.workers import CodecParts, codec_of, decoded
from audiolens.errors import AudioLensError, AudioLensWarning, InputError
from audiolens.model.config import LensConfig
from audiolens.model.devices import described

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.tracing.generation import Generation


@dataclass(frozen=True)
class Place:
    """Where a worker runs: the address of its machine, its process number, and the device that it computes on."""

    node: str
    process: int
    device: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.node}"


@dataclass(frozen=True)
class Generated:
    """A batch that is not measured yet. On a CPU, `audio` is `None`, because those who measure decode the codes.

    `at_once` is the number of rows that fitted in memory, if the batch was divided.
    """

    codes: np.ndarray
    audio: np.ndarray | None
    made: Generation | None
    at_once: int | None = None


class Worker:
    """Holds a model, and calls functions of the package with it.

    Args:
        opening: the pickled function that opens the model (`audiolens.tracing.reopening.elsewhere`).
        expected: the versions of the packages that results depend on.
    """

    def __init__(self, opening: bytes, expected: Mapping[str, str]) -> None:
        self._opening, self._expected = opening, expected
        self._lens: AudioLens | None = None
        self._work: tuple[Any, Any] = (None, None)

    def open(self) -> Place:
        """Open the model, and return where this worker runs.

        Raises:
            InputError: if this worker has other versions of packages, or another model.
        """
        lens = self._opened()
        return Place(_node(), os.getpid(), described(lens.device))

    def call(self, function: Callable[..., Any], work: list[Any], settings: Mapping[str, Any], *arguments: Any) -> Any:
        """Return `function(lens, work, *arguments)`.

        Args:
            function: a function of a module of the package.
            work: a list with the reference to the pickled work. Ray resolves references in arguments, but not in lists,
                so that the work is fetched only once.
            settings: the `torch_settings` of the process that asks.
        """
        lens = self._opened()
        torch.set_num_threads(settings["threads"])
        torch.set_float32_matmul_precision(settings["precision"])
        return function(lens, self._fetched(work[0]), *arguments)

    def _opened(self) -> AudioLens:
        if self._lens is None:
            # The process that started this worker has warned already.
            warnings.simplefilter("ignore", AudioLensWarning)
            refuse_other_versions(self._expected)
            try:
                self._lens = pickle.loads(self._opening)()
            except AudioLensError as error:
                raise InputError(f"a worker on {_node()} cannot open the same model: {error}") from None
        assert self._lens is not None
        return self._lens

    def _fetched(self, reference: Any) -> Any:
        import ray

        if self._work[0] != reference:
            self._work = reference, pickle.loads(ray.get(reference))
        return self._work[1]


class Ear:
    """Measures batches that workers have generated, on a machine that needs no GPU.

    Args:
        codec: the codec, if it is this object that decodes.
        config: the model's sizes and rates.
        expected: as in `Worker`.
    """

    def __init__(self, codec: CodecParts | None, config: LensConfig, expected: Mapping[str, str]) -> None:
        self._parts, self._config, self._expected = codec, config, expected
        self._codec: Any = None
        self._checked = False

    def hear(self, generated: Generated, wanted: Wanted) -> Heard:
        """Decode the batch if it was not decoded, and measure it."""
        self._prepare()
        with one_thread():
            # Ray's arrays cannot be written to, and torch warns of them.
            codes, audio = np.array(generated.codes), generated.audio
            if audio is None:
                audio = decoded(torch.from_numpy(codes), self._codec, self._config)
            heard = hear(codes, audio, self._config.sample_rate, wanted, generated.made)
        return replace(heard, at_once=generated.at_once)

    def _prepare(self) -> None:
        if not self._checked:
            warnings.simplefilter("ignore", AudioLensWarning)
            refuse_other_versions(self._expected)
            self._codec = None if self._parts is None else codec_of(self._parts)
            self._checked = True


def played(lens: AudioLens, work: Work, number: int, wanted: Wanted) -> Heard:
    """Generate, decode and measure a batch."""
    made = lens.generate(**work.asked(lens, number))
    with one_thread():
        return hear(made.codes.cpu().numpy(), sound_of(lens, made.codes), lens.config.sample_rate, wanted, made)


def generated(lens: AudioLens, work: Work, number: int, wanted: Wanted) -> Generated:
    """Generate a batch, and decode it if the model is on an accelerator."""
    made = lens.generate(**work.asked(lens, number))
    codes, sound = made.codes.cpu().numpy(), _sound(lens, made.codes)
    return Generated(codes, sound, made if wanted.made else None, made.settings.get("at_once"))


def sampled(lens: AudioLens, work: Work) -> np.ndarray:
    """Generate a few rows, with which devices are compared."""
    return lens.generate(**work.sample(lens)).codes.cpu().numpy()


def redone(lens: AudioLens, _: Any, codes: np.ndarray, wanted: Wanted) -> Heard:
    """Decode and measure codes that were generated before."""
    given = torch.from_numpy(np.array(codes))
    with one_thread():
        return hear(given.numpy(), sound_of(lens, given.to(lens.device)), lens.config.sample_rate, wanted)


def refuse_other_versions(expected: Mapping[str, str]) -> None:
    """Raise an error if this process has other versions of the packages that results depend on."""
    here = versions()
    for name, version in expected.items():
        if here.get(name) != version:
            raise InputError(
                f"a worker on {_node()} has {name} {here.get(name, '(missing)')}, but the run was started with "
                f"{version}: install the same versions on every machine of the cluster."
            )


def _sound(lens: AudioLens, codes: torch.Tensor) -> np.ndarray | None:
    return None if lens.device.type == "cpu" else sound_of(lens, codes)


def _node() -> str:
    import ray

    return ray.util.get_node_ip_address()
