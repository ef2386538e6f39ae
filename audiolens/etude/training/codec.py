"""étude's codec: a stock EnCodec, and the quantiser training that transformers lacks.

There are three phases. The first trains an autoencoder without a quantiser. The second adds residual codebooks,
initialised by k-means, and trains everything jointly with a straight-through estimator, moving averages and the revival
of dead codes (van den Oord et al. 2017; Zeghidour et al., SoundStream, 2021). The last trains the decoder alone, on
fixed codes, so its loss may differ without changing a code. The loss consists mostly of spectral magnitudes at four
resolutions (EnCodec, Défossez et al. 2022). It also has a term for band energies, without which the codec drops the
treble of bright clips, and a term with a window long enough to distinguish a major third from a minor one, without
which it loses the mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import EncodecConfig, EncodecModel

from audiolens.etude.synth import SAMPLE_RATE
from audiolens.etude.training import checkpoint
from audiolens.etude.training.rates import warm_cosine

HOP = 640
FRAME_RATE = SAMPLE_RATE // HOP
N_CODEBOOKS = 4
CODEBOOK_SIZE = 256
FFT_SIZES = (256, 512, 1024, 2048)
BAND_FFT = 1024
PITCH_FFT, PITCH_HZ = 4096, (80, 1600)
MEL_FFT, MEL_HOP, MEL_BANDS = 1024, 256, 64
MEL_FLOOR = 1e-8
"""Power in a mel band below which differences do not count in training: about 80 dB below the loudest bands."""


def build(n_codebooks: int = N_CODEBOOKS) -> EncodecModel:
    """An untrained codec with 2.1 M parameters: 16 kHz mono, 25 frames per second, `n_codebooks` codebooks of 256.

    Each codebook adds 0.2 kbit/s.
    """
    config = EncodecConfig(
        sampling_rate=SAMPLE_RATE,
        audio_channels=1,
        normalize=False,
        target_bandwidths=[n_codebooks * math.log2(CODEBOOK_SIZE) * FRAME_RATE / 1000],
        upsampling_ratios=[4, 4, 5, 8],
        num_filters=16,
        hidden_size=64,
        codebook_size=CODEBOOK_SIZE,
        num_lstm_layers=1,
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    return EncodecModel(config)


@dataclass(frozen=True)
class TrainingSchedule:
    """The number of steps in each phase, the shape of a batch, the learning rates and the weights of the loss."""

    autoencoder: int = 700
    joint: int = 3400
    decoder: int = 500
    bands_from: int = 1600
    """The step at which band energies join the loss; if added earlier, they dominate pitch and the mode is lost."""
    batch_size: int = 16
    segment_frames: int = 32
    learning_rate: float = 1e-3
    decoder_rate: float | None = None
    """The learning rate at which the decoder's own phase starts; `None` continues the schedule of the other phases."""
    waveform: float = 0.5
    decoder_waveform: float | None = None
    """The weight of the waveform loss in the decoder's own phase, if it differs from `waveform`."""
    waveform_per_clip: bool = False
    """Whether the waveform loss is relative to each clip's level. Otherwise loud clips dominate it."""
    mel: float = 0.0
    """The weight of the mel loss, in the decoder's own phase."""
    bfloat16: bool = False
    """Whether convolutions run in bfloat16 (autocast). Spectra and the quantiser always use float32."""

    @property
    def decoder_from(self) -> int:
        """The step at which the decoder's own phase begins."""
        return self.autoencoder + self.joint

    @property
    def total(self) -> int:
        return self.decoder_from + self.decoder

    def rate(self, step: int) -> float:
        """The learning rate at a step."""
        if self.decoder_rate is None:
            return warm_cosine(step, self.total, self.learning_rate, warmup=100, floor=0.05)
        if step < self.decoder_from:
            return warm_cosine(step, self.decoder_from, self.learning_rate, warmup=100, floor=0.05)
        return warm_cosine(step - self.decoder_from, self.decoder, self.decoder_rate, warmup=20, floor=0.05)


def train(
    audio: Int[np.ndarray, "clip sample"],
    out: Path,
    schedule: TrainingSchedule = TrainingSchedule(),  # noqa: B008 (frozen)
    report: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
    save_every: int = 200,
    report_every: int = 20,
    device: str = "cpu",
    n_codebooks: int = N_CODEBOOKS,
) -> Any:
    """Train a codec on 16-bit clips. Checkpoints are written to `out`, and training resumes from an existing one."""
    torch.manual_seed(0)
    model: Any = build(n_codebooks)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.8, 0.99), weight_decay=0.0)
    step = checkpoint.load(out, {"codec": model}, optimizer)
    model.train()
    while step < schedule.total:
        if step == schedule.autoencoder:
            _start_codebooks(model, [_segments(audio, s, schedule, device) for s in range(24)])
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        target = _segments(audio, step, schedule, device)
        decoder_only = step >= schedule.decoder_from
        lower = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=schedule.bfloat16)
        with torch.set_grad_enabled(not decoder_only), lower:
            latent = model.encoder(target).float()
        commitment = latent.new_zeros(())
        if step >= schedule.autoencoder:
            quantized = quantize(model, latent.detach(), learn=not decoder_only, seed=step)
            commitment = F.mse_loss(latent, quantized)
            latent = latent + (quantized - latent).detach()
        with lower:
            output = model.decoder(latent).float()
        losses = _losses(output, target, schedule, decoder_only)
        if decoder_only and schedule.mel:
            losses["mel"] = schedule.mel * (log_mel(output) - log_mel(target)).abs().mean()
        wanted = [value for name, value in losses.items() if name != "bands" or step >= schedule.bands_from]
        loss = torch.stack(wanted).sum() + 0.25 * commitment
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % report_every == 0:
            values = {name: float(value.detach()) for name, value in losses.items()}
            report(step, schedule.total, values | {"commitment": float(commitment.detach())})
        if step % save_every == 0 or step == schedule.total:
            checkpoint.save(out, {"codec": model}, step, optimizer)
    return model.eval()


@torch.no_grad()
def quantize(
    model: EncodecModel,
    latent: Float[Tensor, "row latent frame"],
    learn: bool = False,
    decay: float = 0.99,
    seed: int = 0,
) -> Float[Tensor, "row latent frame"]:
    """Quantise `latent` with residual codebooks; with `learn`, also move each codebook towards its inputs.

    `seed` selects the vectors at which unused codes restart.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    rows, _, frames = latent.shape
    residual = latent.permute(0, 2, 1).reshape(rows * frames, -1)
    total = torch.zeros_like(residual)
    for book in _codebooks(model):
        codes = book.quantize(residual)
        chosen = book.decode(codes)
        if learn:
            counts = F.one_hot(codes, CODEBOOK_SIZE).to(residual.dtype)
            book.cluster_size.mul_(decay).add_(counts.sum(0), alpha=1 - decay)
            book.embed_avg.mul_(decay).add_(counts.T @ residual, alpha=1 - decay)
            book.embed.copy_(book.embed_avg / book.cluster_size.clamp_min(1e-3)[:, None])
            _revive(book, residual, generator)
        residual = residual - chosen
        total = total + chosen
    return total.reshape(rows, frames, -1).permute(0, 2, 1)


def _codebooks(model: EncodecModel) -> list[Any]:
    layers: Any = model.quantizer.layers
    return [layer.codebook for layer in layers]


def _revive(
    book: Any, residual: Float[Tensor, "vector latent"], generator: torch.Generator, floor: float = 0.2
) -> None:
    """Restart codes that are hardly ever chosen, placing them at random vectors of the batch."""
    dead = (book.cluster_size < floor).nonzero().flatten()
    if len(dead):
        fresh = residual[torch.randint(len(residual), (len(dead),), generator=generator).to(residual.device)]
        book.embed[dead], book.embed_avg[dead], book.cluster_size[dead] = fresh, fresh, 1.0


@torch.no_grad()
def _start_codebooks(model: EncodecModel, batches: list[Tensor], rounds: int = 12) -> None:
    latent = torch.cat([model.encoder(batch) for batch in batches])
    residual = latent.permute(0, 2, 1).reshape(-1, latent.shape[1])
    generator = torch.Generator("cpu").manual_seed(0)
    for book in _codebooks(model):
        book.embed.copy_(
            residual[torch.randperm(len(residual), generator=generator)[:CODEBOOK_SIZE].to(residual.device)]
        )
        counts = residual.new_zeros(CODEBOOK_SIZE)
        for _ in range(rounds):
            chosen = F.one_hot(book.quantize(residual), CODEBOOK_SIZE).to(residual.dtype)
            counts = chosen.sum(0)
            used = counts > 0
            book.embed[used] = (chosen.T @ residual)[used] / counts[used, None]
        book.cluster_size.copy_(counts / len(batches))
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
        residual = residual - book.decode(book.quantize(residual))


def _losses(
    output: Float[Tensor, "row 1 sample"],
    target: Float[Tensor, "row 1 sample"],
    schedule: TrainingSchedule,
    decoder_only: bool,
) -> dict[str, Tensor]:
    log_magnitude = output.new_zeros(())
    convergence = output.new_zeros(())
    bands = output.new_zeros(())
    for n_fft in FFT_SIZES:
        a, b = _magnitude(output, n_fft), _magnitude(target, n_fft)
        log_magnitude = log_magnitude + ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean()
        convergence = convergence + (a - b).norm() / b.norm()
        if n_fft == BAND_FFT:
            bands = (_band_levels(a) - _band_levels(b)).abs().mean()
    low, high = (round(hz * PITCH_FFT / SAMPLE_RATE) for hz in PITCH_HZ)
    a, b = (_magnitude(sound, PITCH_FFT)[:, low:high] for sound in (output, target))
    pitch = 0.5 * ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean() + (a - b).norm() / b.norm()
    last = schedule.decoder_waveform if decoder_only else None
    weight = schedule.waveform if last is None else last
    over = (1, 2) if schedule.waveform_per_clip else (0, 1, 2)
    waveform = ((output - target).abs().mean(over) / target.abs().mean(over).clamp_min(1e-4)).mean()
    return {
        "log_magnitude": log_magnitude / 4,
        "convergence": 0.5 * convergence / 4,
        "waveform": weight * waveform,
        "bands": bands,
        "pitch": pitch,
    }


def _band_levels(magnitude: Float[Tensor, "row bin frame"]) -> Float[Tensor, "row band block"]:
    """Log power in 32 mel bands over 64 ms; a loss over single bins would reward omitting noise and treble."""
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=BAND_FFT, n_mels=32, norm=None)
    power = torch.from_numpy(filters).to(magnitude) @ magnitude**2
    return (F.avg_pool1d(power, 4) + 1e-4).log()


def log_mel(
    audio: Float[Tensor, "row 1 sample"], floor: float | Float[Tensor, "row 1 1"] = MEL_FLOOR
) -> Float[Tensor, "row band frame"]:
    """The log (base 10) power in 64 mel bands, of frames of 64 ms every 16 ms; smaller powers count as `floor`."""
    power = mel_power(audio)
    return torch.maximum(power, torch.as_tensor(floor).to(power)).log10()


def mel_power(audio: Float[Tensor, "row 1 sample"]) -> Float[Tensor, "row band frame"]:
    """The power in 64 mel bands: Hann window of 1,024 samples, hop 256, Slaney's mel scale, triangles of height 1.

    Spectra are divided by the norm of the window, so that white noise of standard deviation s has power s ** 2 in
    every bin.
    """
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=MEL_FFT, n_mels=MEL_BANDS, norm=None)
    window = torch.hann_window(MEL_FFT, device=audio.device)
    spectrum = torch.stft(audio[:, 0], MEL_FFT, MEL_HOP, window=window, return_complex=True)
    return torch.from_numpy(filters).to(audio) @ (spectrum.real**2 + spectrum.imag**2) / window.square().sum()


def _magnitude(audio: Float[Tensor, "row 1 sample"], n_fft: int) -> Float[Tensor, "row bin frame"]:
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(audio[:, 0], n_fft, n_fft // 4, window=window, return_complex=True)
    return (spectrum.real**2 + spectrum.imag**2 + 1e-10).sqrt() / window.norm()


def _segments(
    audio: Int[np.ndarray, "clip sample"], step: int, schedule: TrainingSchedule, device: str
) -> Float[Tensor, "row 1 segment"]:
    """A batch of random segments that depends only on the step, so that a resumed run sees the same batches."""
    rng = np.random.default_rng([11, step])
    length = schedule.segment_frames * HOP
    rows = rng.integers(len(audio), size=schedule.batch_size)
    starts = rng.integers(audio.shape[1] - length + 1, size=schedule.batch_size)
    cut = np.stack([audio[row, start : start + length] for row, start in zip(rows, starts, strict=True)])
    return torch.from_numpy(cut.astype(np.float32) / 32768)[:, None].to(device)
