"""The random numbers with which codes are drawn: each depends on a row's seed, a step, a codebook and a code alone.

They are outputs of Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a function
of a counter and a key. The key is the row's seed, and the counter contains the step, the codebook and the code. The
noise of any row and step can therefore be computed at any time, in any batch and on any device. The integers and the
uniform numbers are the same on all devices. Only the logarithms may be rounded differently.

Noise is computed for all rows and for several steps at once.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOISE = "philox-4x32-10"
"""The name of these random numbers, in what records how clips were drawn. Earlier versions used torch's generators."""
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS, _WORDS = 10, 4
_LOW = 0xFFFFFFFF
_AT_ONCE, _AT_ONCE_ON_CPU = 2**20, 2**15
"""The number of Philox outputs, of four numbers each, that are computed at once. It limits the memory to about 100 MB,
and on a CPU to what fits into its cache."""


class RowNoise:
    """Gumbel noise for the rows of a batch, one seed per row. `steps` is the number of steps of the clips."""

    def __init__(self, seeds: Sequence[int], n_codebooks: int, vocab_size: int, steps: int) -> None:
        self.seeds = torch.tensor(seeds, dtype=torch.long, device="cpu")
        self.n_codebooks, self.vocab_size, self.steps = n_codebooks, vocab_size, steps
        self._first = 0
        self._noise: Tensor | None = None

    def at(self, step: int, device: torch.device) -> Float[Tensor, "row codebook vocab"]:
        """Return the noise of one step."""
        noise = self._noise
        if noise is None or noise.device != device or not self._first <= step < self._first + len(noise):
            self._first, noise = step, self._computed(step, device)
            self._noise = noise
        return noise[step - self._first]

    def _computed(self, first: int, device: torch.device) -> Float[Tensor, "step row codebook vocab"]:
        if self.seeds.device != device:
            self.seeds = self.seeds.to(device)
        most = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE
        of_row = self.vocab_size * -(-self.n_codebooks // _WORDS)
        length = max(1, min(most // (of_row * len(self.seeds)), self.steps - first))
        steps = range(first, first + length)
        # If even a single step is too large, its rows are computed in parts.
        parts = self.seeds.split(max(1, most // (of_row * length)))
        made = [gumbel(seeds, steps, self.n_codebooks, self.vocab_size) for seeds in parts]
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)


def gumbel(
    seeds: Int[Tensor, " row"], steps: range, n_codebooks: int, vocab_size: int
) -> Float[Tensor, "step row codebook vocab"]:
    """Return -log(e) for exponential numbers e with mean 1, in float32 on the device of the seeds.

    A sample from softmax(logits) is the code with the largest logit after adding this noise.
    """
    device = seeds.device

    def axis(*bounds: int) -> Int[Tensor, " n"]:
        return torch.arange(*bounds, dtype=torch.long, device=device)

    groups, own_steps, keys = axis(-(-n_codebooks // _WORDS)), axis(steps.start, steps.stop), seeds[:, None, None]
    counter = axis(vocab_size), groups[:, None], own_steps[:, None, None, None], axis(1)
    words = philox(counter, (keys & _LOW, keys >> 32))
    noise = torch.empty(len(steps), len(seeds), n_codebooks, vocab_size, dtype=torch.float32, device=device)
    for number, word in enumerate(words):
        own = noise[:, :, number::_WORDS]
        own.copy_(word[:, :, : own.shape[2]])
    return uniform_(noise).neg_().log1p_().neg_().log_().neg_()


def uniform_(words: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Turn whole numbers from 0 to 2^32 - 1, rounded to float32, into numbers above 0 and below 1, in place.

    Small numbers have the full resolution of 2^-32, and these are the numbers that decide which code is drawn.
    """
    return words.add_(0.5).mul_(2.0**-32).clamp_max_(1 - 2.0**-24)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four words of Philox-4x32-10 for counters and keys of any shapes that broadcast against each other.

    All words are int64 tensors with values from 0 to 2^32 - 1. A product of two words needs 64 unsigned bits, of which
    int64 arithmetic gives the correct ones.
    """
    shape = torch.broadcast_shapes(*(word.shape for word in (*counter, *key)))

    def mixed(product: Tensor, word: Tensor, own_key: Tensor) -> Tensor:
        high = product >> 32
        if high.shape == shape:
            return high.bitwise_xor_(word).bitwise_xor_(own_key).bitwise_and_(_LOW)
        # The first two rounds act on fewer numbers, because not every word depends on every axis yet.
        return (high ^ word ^ own_key) & _LOW

    a, b, c, d = counter
    rounds = torch.arange(_ROUNDS, device=a.device)
    first, second = (
        (word + rounds.view(-1, *[1] * word.ndim) * step) & _LOW for word, step in zip(key, _KEY_STEPS, strict=True)
    )
    for own, other in zip(first, second, strict=True):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        # The upper halves of `b` and `d` are removed only where they matter.
        a, b, c, d = mixed(right, b, own), right, mixed(left, d, other), left
    return a, b & _LOW, c, d & _LOW
