"""ActivationCache: what a run recorded, as labelled tensors that stack, slice, project, decompose and save.

Keys are full site names ("blocks.3.hook_resid_post"); `cache["resid_post", 3]` and `cache.stack("resid_post")`
use the short forms. Every tensor's axes are named: "row step d_model" for a residual site, with a leading
"branch" axis when both branches of the guidance were recorded, and without "step" when the run reduced over time.
Patterns are "row head query key", with as many keys as the clip has steps (or the longest prompt tokens).
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiolens.decomposition import Components, Readout, Stream, accumulate, decompose, logit_lens
from audiolens.errors import InputError, InputTypeError, SiteError, nearest, shortened
from audiolens.permissions import opened
from audiolens.timeline import Span, checked_span

_FORMAT = "audiolens.activations.1"


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """Recorded activations.

    `tensors` and `axes` share their keys. `first_step` is the position of the step axis's first entry,
    `branch` the branch recorded ("cond", "null" or "both"), `reduce` the reduction over time, if any. `norms`
    holds, for `reduce="mean"`, the mean over the same steps of the activations' lengths. `heads` are the heads
    recorded at head sites, in their order (`None`: all). `stream` says what is added up in the model's residual
    stream. `readout` is its final norm and its output heads, the model's own tensors: of the model a cache holds only
    these, and a file none.

    `prefixes` holds, where the conditioning stands before the audio steps (MusicGen Melody), how many positions it
    takes in each row. Recorded with `prefix=True` the steps begin at a negative `first_step`, that of the longest: step
    s stands at index s - first_step, the text's last token at step -1, and zeros before a shorter prefix. The keys of
    a pattern always begin there, because every step looks back on its prefix.
    """

    tensors: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    branch: str = "cond"
    first_step: int = 0
    frame_rate: float = 0.0
    prompts: tuple[str | None, ...] = ()
    reduce: str | None = None
    norms: Mapping[str, Tensor] = field(default_factory=dict)
    model: str = ""
    heads: tuple[int, ...] | None = None
    stream: Stream | None = None
    readout: Readout | None = None
    prefixes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, key: object) -> bool:
        try:
            return self._key(key) in self.tensors
        except (SiteError, InputTypeError):
            return False

    def keys(self) -> list[str]:
        return list(self.tensors)

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        """One site's tensor, by full name or by (short name, layer)."""
        name = self._key(key)
        if name not in self.tensors:
            raise SiteError(
                f"{name!r} was not recorded.{nearest(name, self.tensors)} Recorded: {shortened(self.tensors)}."
            )
        return self.tensors[name]

    def layers(self, site: str) -> list[int]:
        """The layers at which a site was recorded."""
        hook = _hook(site)
        found = [name.split(".", 2) for name in self.tensors if name.startswith("blocks.")]
        return sorted(int(layer) for _, layer, rest in found if rest == hook)

    def stack(self, site: str) -> Float[Tensor, "layer ..."]:
        """A site of every recorded layer: "layer row step d_model" (or "layer branch row ...", or without "step")."""
        layers = self.layers(site)
        if not layers:
            raise SiteError(f"site {site!r} was not recorded. Recorded: {shortened(self.tensors)}.")
        return torch.stack([self[site, layer] for layer in layers])

    def stack_norms(self, site: str) -> Float[Tensor, "layer ..."]:
        """Mean activation lengths of every recorded layer: "layer row" (needs `reduce="mean"`)."""
        names = [f"blocks.{layer}.{_hook(site)}" for layer in self.layers(site)]
        if not names or any(name not in self.norms for name in names):
            raise SiteError(f"no norms of {site!r} were recorded: they come with reduce='mean'.")
        return torch.stack([self.norms[name] for name in names])

    def rows(self, rows: Sequence[int]) -> "ActivationCache":
        """The same cache for some rows."""
        index = torch.tensor(list(rows))

        def pick(tensor: Tensor, name: str) -> Tensor:
            return tensor.index_select(self.axes[name].index("row"), index.to(tensor.device))

        return replace(
            self,
            tensors={name: pick(tensor, name) for name, tensor in self.tensors.items()},
            norms={name: pick(tensor, name) for name, tensor in self.norms.items()},
            prompts=tuple(self.prompts[row] for row in rows) if self.prompts else (),
            prefixes=tuple(self.prefixes[row] for row in rows) if self.prefixes else (),
        )

    def seconds(self, span: Span) -> "ActivationCache":
        """The same cache for the steps of a span in seconds."""
        if self.reduce is not None:
            raise InputError(f"this cache was reduced over time ({self.reduce}): it has no steps to choose from.")
        start, stop = checked_span(span)
        first, end = round(start * self.frame_rate), round(stop * self.frame_rate)
        times = {name: axes.index(time) for name, axes in self.axes.items() if (time := _time(axes))}
        steps = {self.tensors[name].shape[axis] for name, axis in times.items()}
        if first >= end or first < self.first_step or any(end > self.first_step + count for count in steps):
            raise InputError(f"seconds={span} is not inside the recorded steps.")
        return replace(
            self,
            first_step=first,
            tensors={
                name: tensor.narrow(times[name], first - self.first_step, end - first) if name in times else tensor
                for name, tensor in self.tensors.items()
            },
        )

    def project(self, direction: Any, site: str = "resid_post") -> Float[Tensor, "layer ..."]:
        """Projection on unit directions over time: "layer row step".

        `direction` is "d_model", "layer d_model", or a mapping from layer to vector (a `Directions` will do). Units
        are those of the residual stream.
        """
        layers = self.layers(site)
        values = self.stack(site).float()
        if isinstance(direction, Tensor):
            vectors = direction if direction.ndim == 2 else direction.expand(len(layers), -1)
        else:
            vectors = torch.stack([torch.as_tensor(direction[layer]) for layer in layers])
        vectors = vectors.to(values).float()
        if vectors.shape != (len(layers), values.shape[-1]):
            raise InputError(
                f"directions of shape {tuple(vectors.shape)}: expected ({len(layers)}, {values.shape[-1]}) at {site}."
            )
        unit = vectors / vectors.norm(dim=-1, keepdim=True)
        return torch.einsum("l...d,ld->l...", values, unit)

    def decompose_resid(self, layer: int | None = None) -> Components:
        """What was written into the residual stream below a block: "component row step d_model", with labels.

        The components add up to what block `layer` reads; `None` (or -1, or the number of blocks) is the whole model,
        whose sum is the last `resid_post`. They are the embeddings ("embed" and "pos_embed" where both were
        recorded, else "0_pre", their sum) and each block's "3_attn_out", "3_cross_attn_out" and "3_mlp_out". An
        intervention at a residual site is in none of them: the sum then leaves it out.

        Raises:
            SiteError: if a part was not recorded; the message says which sites to record.
        """
        return decompose(self, layer)

    def accumulated_resid(self, layer: int | None = None, incl_mid: bool = False) -> Components:
        """The states of the residual stream up to a block: "component row step d_model", with labels.

        "0_pre" to what block `layer` reads; `None` goes on to "final_post", before the final norm. What a block
        reads is taken from its `resid_pre` or, where that was not recorded, from the `resid_post` of the block below.
        `incl_mid` adds the states inside a block: "3_mid" after its attention, "3_cross" after its cross-attention.

        Raises:
            SiteError: if a state was not recorded; the message says which sites to record.
        """
        return accumulate(self, layer, incl_mid)

    def logit_lens(
        self, lens: Any = None, *, site: str = "resid_post", layers: int | Sequence[int] | None = None
    ) -> Float[Tensor, "layer ..."]:
        """The logits of the stream at each recorded layer, had the model ended there: through the final norm and heads.

        Returns "layer row codebook step vocab" (with "branch" before "row", or without "step", as recorded): of the
        last block, the model's own logits. That is n_codebooks x vocab_size / d_model times the size of the states:
        `layers` chooses some. Of a mean over time (`reduce="mean"`) it reads the mean state, which is not the mean of
        the readings.

        Args:
            lens: needed for a cache that was loaded from a file: a lens on the model it was recorded from.
        """
        return logit_lens(self, lens, site, layers)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> "ActivationCache":
        """The same cache on another device or in another dtype."""
        return replace(
            self,
            tensors={name: tensor.to(device=device, dtype=dtype) for name, tensor in self.tensors.items()},
            norms={name: tensor.to(device=device) for name, tensor in self.norms.items()},
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file with the labels in its header; an existing file is replaced whole."""
        path = Path(path)
        labels = {
            "format": _FORMAT,
            "axes": {name: list(axes) for name, axes in self.axes.items()},
            "branch": self.branch,
            "first_step": self.first_step,
            "frame_rate": self.frame_rate,
            "prompts": list(self.prompts),
            "reduce": self.reduce,
            "model": self.model,
            "heads": self.heads,
            "stream": None if self.stream is None else asdict(self.stream),
            "prefixes": list(self.prefixes),
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        tensors.update({f"norms/{name}": norm.detach().cpu().contiguous() for name, norm in self.norms.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / "cache.safetensors"
            save_file(tensors, whole, metadata={"audiolens": json.dumps(labels)})
            opened(whole).replace(path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str], sites: Sequence[str] | None = None) -> "ActivationCache":
        """Read a saved cache, or only some full site names of it.

        Raises:
            InputError: if the file is not a whole activation cache.
        """
        try:
            with safe_open(path, framework="pt") as file:
                labels = json.loads((file.metadata() or {})["audiolens"])
                if labels["format"] != _FORMAT:
                    raise InputError(f"{path}: format {labels['format']!r}, expected {_FORMAT!r}.")
                wanted = list(labels["axes"]) if sites is None else list(sites)
                missing = [name for name in wanted if name not in labels["axes"]]
                if missing:
                    raise SiteError(f"{path} does not hold {missing[0]!r}.{nearest(missing[0], labels['axes'])}")
                keys = set(file.keys())
                tensors = {name: file.get_tensor(name) for name in wanted}
                norms = {name: file.get_tensor(f"norms/{name}") for name in wanted if f"norms/{name}" in keys}
                blocks = labels.get("stream")
                stream = None if blocks is None else Stream(int(blocks["n_layers"]), tuple(blocks["parts"]))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file.") from None
        except (KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not an activation cache: {error!r} is missing or unreadable.") from None
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} is not a whole safetensors file: {error}.") from None
        return cls(
            tensors=tensors,
            axes={name: tuple(labels["axes"][name]) for name in wanted},
            branch=labels["branch"],
            first_step=labels["first_step"],
            frame_rate=labels["frame_rate"],
            prompts=tuple(labels["prompts"]),
            reduce=labels["reduce"],
            norms=norms,
            model=labels["model"],
            heads=None if labels.get("heads") is None else tuple(labels["heads"]),
            stream=stream,
            prefixes=tuple(labels.get("prefixes", ())),
        )

    def __repr__(self) -> str:
        shapes = [f"{name} {tuple(tensor.shape)}" for name, tensor in list(self.tensors.items())[:2]]
        more = ", ..." if len(self.tensors) > 2 else ""
        return f"ActivationCache({len(self.tensors)} sites, branch={self.branch}: {', '.join(shapes)}{more})"

    def _key(self, key: object) -> str:
        if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str):
            return f"blocks.{int(key[1])}.{_hook(key[0])}"
        if isinstance(key, str):
            return key
        raise InputTypeError(f"{key!r}: expected a site name or a (site, layer) pair.")


def _time(axes: Sequence[str]) -> str | None:
    """The axis of the steps: a pattern's are its queries."""
    return next((axis for axis in ("step", "query") if axis in axes), None)


def _hook(site: str) -> str:
    """The full hook name of a short one: "resid_post" and "attn.z" gain their "hook_"."""
    group, _, leaf = site.rpartition(".")
    leaf = leaf if leaf.startswith("hook_") else f"hook_{leaf}"
    return f"{group}.{leaf}" if group else leaf
