"""The outputs that are made in the gaps of a repair are those that are made before it."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from networks import samples, twins

from onnxprune import meanwhile, prune, running
from onnxprune.errors import OnnxpruneError
from onnxprune.numerics.threads import LIMIT
from onnxprune.runtime import idle

pytestmark = pytest.mark.cores
FORMS = ("digits.onnx", "digits_folded.onnx")
FEW = {"sparsity": 0.9, "samples": 120, "batch_size": 8, "device": "cpu"}


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "allowed", lambda: 2)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows when the outputs are made in the gaps of a repair."""
    found: list[int] = []
    made = meanwhile.Gaps

    class Counted(made):  # type: ignore[misc, valid-type]
        def __enter__(self) -> "Counted":
            found.append(1)
            return super().__enter__()  # type: ignore[no-any-return]

    monkeypatch.setattr(meanwhile, "Gaps", Counted)
    return found


def refused(*told: object) -> None:
    raise PermissionError("no nicer thread here")


@pytest.mark.parametrize(("form", "repair"), [(FORMS[0], "bn"), (FORMS[0], "channel"), (FORMS[1], "channel")])
@pytest.mark.parametrize("gaps", [True, False])  # without, all are made behind the repair
def test_they_are_those_that_are_made_before_it(
    digits: Path, form: str, repair: str, gaps: bool, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "THERE", True)
    if not gaps:
        monkeypatch.setattr(idle.os, "setpriority", refused, raising=False)
    found = prune(digits / form, digits / "calib.npz", repair=repair, **FEW)
    assert used == [1]
    monkeypatch.setattr(running, "THERE", False)
    wanted = prune(digits / form, digits / "calib.npz", repair=repair, **FEW)
    assert used == [1]
    assert found.model.SerializeToString() == wanted.model.SerializeToString()
    assert found.report.agreement == wanted.report.agreement  # bit by bit: of masks alone too, which the repair changes meanwhile
    assert found.report.agreement is not None
    assert found.report.agreement.masked != found.report.agreement.repaired


@pytest.mark.parametrize("told", [{"threads": 1}, {"threads": 2}, {"memory": "1GB"}, {"holdout": 0.0}, {"repair": "none"}])
def test_not_where_threads_are_counted_or_memory_is_bounded_or_there_is_nothing_to_do(digits: Path, told: dict, used: list[int]) -> None:
    result = prune(digits / FORMS[0], digits / "calib.npz", **{**FEW, **told})
    assert used == []
    assert (result.report.agreement is None) is ("holdout" in told)


def test_not_where_the_environment_counts_threads(digits: Path, used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT, "2")
    prune(digits / FORMS[0], digits / "calib.npz", **FEW)
    assert used == []


def test_not_where_one_more_batch_would_drive_the_others_out_of_the_cache(
    digits: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CACHED", 1000)
    prune(digits / FORMS[0], digits / "calib.npz", **FEW)
    assert used == []


def test_a_reconstruction_from_rows_of_several_batches_at_once_is_that_of_one_where_all_goes_by_turns(
    used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "THERE", True)
    found = prune(twins(4)[0], samples(80), repair="reconstruct", sparsity=0.8, batch_size=8, device="cpu")
    assert used == [1]
    monkeypatch.setattr(running, "allowed", lambda: 1)
    wanted = prune(twins(4)[0], samples(80), repair="reconstruct", sparsity=0.8, batch_size=8, device="cpu")
    assert used == [1]
    assert found.model.SerializeToString() == wanted.model.SerializeToString()
    assert (found.report.layers, found.report.agreement) == (wanted.report.layers, wanted.report.agreement)


def test_the_session_of_masks_alone_is_gone_when_the_next_one_comes(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as large as the model."""
    opened: list[weakref.ref] = []
    left: list[int] = []
    session_of, repair = meanwhile.session_of, meanwhile.repair
    over = threading.Event()

    @contextmanager
    def followed(*told: object, **named: object) -> Iterator[object]:
        left.append(sum(session() is not None for session in opened))
        with session_of(*told, **named) as session:
            opened.append(weakref.ref(session))
            yield session
        if len(opened) == 2:
            over.set()

    def waiting(*told: object) -> object:
        assert over.wait(20)
        return repair(*told)

    monkeypatch.setattr(running, "THERE", True)
    monkeypatch.setattr(meanwhile, "session_of", followed)
    monkeypatch.setattr(meanwhile, "repair", waiting)
    prune(digits / FORMS[0], digits / "calib.npz", **FEW)
    assert left == [0, 0, 0]


def test_a_repair_that_fails_leaves_no_thread(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*told: object) -> None:
        raise OnnxpruneError("the repair failed")

    monkeypatch.setattr(meanwhile, "repair", failing)
    before = threading.active_count()
    with pytest.raises(OnnxpruneError, match="the repair failed"):
        prune(digits / FORMS[0], digits / "calib.npz", **FEW)
    assert threading.active_count() == before
