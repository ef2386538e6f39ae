"""If a public call fails on an argument of the wrong type, the error names it; other errors are left unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

import audiolens as al
from analysis import patching
from audiolens.checks import shown
from audiolens.door import MOST_VALUES, guarded
from audiolens.errors import MOST_CHARACTERS, AudioLensError, InputError, InputTypeError
from audiolens.kinds import described, fits
from audiolens.measure.clips import Audio
from audiolens.model.provenance import Opened
from audiolens.model.timeline import checked_frames
from audiolens.model.traced_model import HasModel

DEEP: Any = []
for _ in range(5_000):
    DEEP = [DEEP]


@guarded
def half(number: float, of: Sequence[str] = (), by: Callable[[float], float] = lambda value: value) -> float:
    return by(number / 2) + sum(len(text) for text in of)


@guarded
class Halves:
    def __init__(self, number: float) -> None:
        self.number = number + 0

    def __getitem__(self, place: int) -> float:
        return [self.number / 2][place]

    @classmethod
    def of(cls, text: str) -> Halves:
        return cls(float(text.strip()))

    def each(self, times: int) -> Iterator[float]:
        for _ in range(times):
            yield self.number / 2


any_half: Any = half
any_halves: Any = Halves


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: any_half("a"), "number='a': expected a number."),
        (lambda: any_half(None), "number=None: expected a number."),
        (lambda: any_half(DEEP), "number=list: expected a number."),
        (lambda: any_half(1.0, of=[1]), r"of=\[1\]: expected a list of \(text\)."),
        (lambda: any_half(1.0, of=5), r"of=5: expected a list"),
        (lambda: any_half(1.0, by=3), "by=3: expected a function."),
        (lambda: any_halves("a"), "number='a': expected a number."),
        (lambda: any_halves(1.0)["a"], "place='a': expected a whole number."),
        (lambda: any_halves.of(3), "text=3: expected text."),
        (lambda: list(any_halves(1.0).each("a")), "times='a': expected a whole number."),
        (
            lambda: any_half(torch.zeros(2, 3, device="meta"), of=[1]),
            r"number=Tensor of torch.float32, shaped \[2, 3\]",
        ),
    ],
)
def test_what_does_not_fit_its_annotation_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputTypeError, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is not None


def test_numbers_that_nothing_can_be_computed_with_are_named() -> None:
    for value in (float("nan"), float("inf"), 1e300, 10**400):
        with pytest.raises(InputTypeError, match=r"times=.*: expected"):
            _places(value)


@guarded
def _places(times: float) -> list[int]:
    return [0] * int(times)


def test_an_error_of_arguments_that_fit_is_left_as_it_is() -> None:
    def own(_: float) -> float:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        half(1.0, by=own)
    with pytest.raises(IndexError):
        Halves(1.0)[3]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        any_half()
    assert half(4, of=(text for text in ("a", "b"))) == 4.0


@pytest.mark.parametrize("of", [count(), range(10**18), range(10**30)])
def test_what_is_without_end_is_not_read(of: Any) -> None:
    with pytest.raises(InputError, match="of=.*: expected at most 1,000,000 items"):
        half(1.0, of=of)


def test_a_view_that_claims_more_than_there_is_is_not_read() -> None:
    for vast in (np.broadcast_to(0.0, (10**6, 10**6)), torch.zeros(1).expand(10**6, 10**6)):
        with pytest.raises(InputError, match=f"number=.*expected at most {MOST_VALUES:,} items"):
            any_half(vast)


def test_a_view_or_a_range_inside_a_list_is_not_read() -> None:
    vast = np.broadcast_to(0.0, (10**6, 10**6))
    for of in ([vast], ("a", vast), {"a": vast}, [range(10**18)]):
        with pytest.raises(InputError, match="of=.*: expected at most"):
            any_half(1.0, of=of)
    with pytest.raises(InputError, match="audio=.*: expected at most"):
        al.measure.loudness([np.zeros(16_000), vast], 16_000)


def test_what_cannot_be_quoted_is_refused_where_it_is_given() -> None:
    for make in (
        lambda: al.Scale(0.5, layers=10**5000),
        lambda: al.Add(np.ones(3), heads=[10**5000]),
        lambda: al.Reading(DEEP),
        lambda: al.Scale(0.5, site=DEEP),
        lambda: _meta(label=DEEP),
        lambda: patching.Sound("loudness", [DEEP]),  # pyright: ignore[reportArgumentType]
        lambda: patching.Pairs((), (), *2 * [torch.zeros(1, 4, 12, dtype=torch.long)]),
        lambda: al.Sampling(top_k=10**5000),
        lambda: checked_frames(10**5000),
        lambda: _meta(n_layers=10**5000),
        lambda: _meta(site=tuple(DEEP)),
        lambda: al.measure.code_entropy([torch.ones(3, requires_grad=True)]),
    ):
        with pytest.raises(AudioLensError) as refused:
            make()
        assert len(str(refused.value)) < 300


VECTOR = np.zeros(3)
CLIPS = SimpleNamespace(config=None, model=None, name="", traced_model=None, audio=VECTOR, sample_rate=16_000)


@pytest.mark.parametrize(
    ("hint", "fitting", "not_fitting"),
    [
        (bool, [True, np.bool_(False)], [1, "no", None]),
        (int, [3, np.int64(3), torch.tensor(3)], [True, 3.5, "3", None]),
        (float, [3, 0.5, np.float32(0.5), torch.tensor(0.5)], [True, "3", None, 1j]),
        (str, ["a", ""], [b"a", 3, "\ud800", "a\0b"]),
        (int | None, [None, 3], ["a"]),
        (Literal["a", "b"], ["a"], ["c", ["a"], None, VECTOR]),
        (Sequence[int], [[1], (1, 2), range(3), np.arange(3), torch.arange(3)], ["12", {1}, {1: 2}, 3, [1, "a"]]),
        (Mapping[str, int], [{}, {"a": 1}], [{1: 1}, [("a", 1)], {"a": "b"}]),
        (tuple[float, float], [(0, 1), [0, 1.5]], [(0,), (0, "a"), 3]),
        (tuple[int, ...], [(), (1, 2)], [("a",), 3]),
        (Callable[[int], int], [len, lambda: 3], [3, None]),
        (Float[Tensor, "row d_model"], [torch.zeros(2, 3)], [torch.zeros(2), VECTOR, torch.zeros(2, 3, device="meta")]),
        (ArrayLike, [[1, 2], VECTOR, torch.zeros(3)], [3, None, "abc", {1}, object(), np.array([None])]),
        (Opened, [CLIPS], [3, VECTOR, slice(3), None]),
        (HasModel | None, [None, CLIPS], [b"a", torch.ones(3)]),
        (Audio, [CLIPS, VECTOR, torch.ones(3), "a.wav", [VECTOR]], [3, None, slice(3)]),
        (Any, [1, None, DEEP], []),
    ],
)
def test_values_fit_annotations_as_they_fit_checks(hint: Any, fitting: list[Any], not_fitting: list[Any]) -> None:
    assert [value for value in fitting if not fits(hint, value)] == []
    assert [shown(value) for value in not_fitting if fits(hint, value)] == []
    assert "\n" not in described(hint)


def test_what_was_given_is_said_in_a_line() -> None:
    long = (DEEP, 10**5000, torch.zeros(9, 9), "a\nb" * 900, b"a" * 900, list(range(900)), {}, np, torch.tensor(3))
    for value in long:
        assert "\n" not in shown(value)
        assert len(shown(value)) < 200


def test_a_message_is_one_line_whatever_was_given() -> None:
    error = InputError(f"a\n  b {'x' * 5_000} expected c.")
    assert str(error).startswith("a b xxx")
    assert str(error).endswith("expected c.")
    assert len(str(error)) <= MOST_CHARACTERS
    assert str(InputTypeError("two  blanks stay")) == "two  blanks stay"


def test_a_path_that_the_system_cannot_have_is_named(tmp_path: Any) -> None:
    from analysis import study

    with pytest.raises(AudioLensError, match="xxx.*File name too long"):
        study.load_folder(tmp_path / ("x" * 5_000))
    with pytest.raises(AudioLensError, match=r"evidence='a': expected Evidence"):
        al.Directions(torch.ones(1, 3), (0,), torch.ones(1), _meta(), evidence="a")  # pyright: ignore[reportArgumentType]


def _meta(**other: Any) -> Any:
    from audiolens.model.provenance import Provenance

    return Provenance(**{"model": "tiny", "weights": "", "n_layers": 3, **other})
