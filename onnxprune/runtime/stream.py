"""One pass of a model over the calibration batches, stage by stage.

A Stream keeps, for every batch, the tensors that later stages still read. To advance to a point it runs the nodes between the last
point and this one, once, with the parameters the model has by now, and gives the statistics of the point's tensor. So repairing a
model of L layers in order costs one forward pass, not L of them. A tensor is dropped when its last reader has run; those beyond the
memory budget lie in a file (spilling).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import RuntimeFailure
from onnxprune.graph import stages
from onnxprune.graph.planning import plan
from onnxprune.graph.probes import Groups, Probe
from onnxprune.graph.wide import Wide
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import as_array, open_session, run_bound, run_session, session_of, to_device
from onnxprune.runtime.several import several
from onnxprune.runtime.spilling import Live, Memory

Batch = dict[str, NDArray[Any]]
Shapes = tuple[tuple[int, ...], ...]
LiveLike = tuple[list[int], int]
"""Shape and element type of a live tensor."""
ONE_NODE = {"cpu": True, "cuda": False}
"""By the kind of device, whether one node gives the statistics of a tensor (graph.probes)."""


class Stream:
    """A walk through a model whose parameters may change ahead of the walk, never behind it.

    Args:
        model: read anew at every stage; the caller changes the values of its tensors between the calls.
        batches: the calibration batches; read once, at the first ``advance``.
        targets: the tensors that will be asked for; nodes that none of them needs never run.
        device: where the stages run, and how many batches at once.
        memory: the budget of the live tensors, which several walks may share; None for all that there is.
    """

    def __init__(
        self, model: onnx.ModelProto, batches: Iterable[Batch], targets: Sequence[str], device: Device, memory: Memory | None = None
    ) -> None:
        self._model = model
        self.plan = plan(model, targets)
        self._ends = self.plan.ends(targets)
        self._batches = batches
        self._targets = list(targets)
        self._device = device
        self._memory = memory or Memory()
        self._live: list[dict[str, Live]] = []
        self._repaired: dict[str, stages.Repaired] = {}
        self._stop = 0
        self.stages_run = 0

    def advance(self, probe: Probe) -> list[Groups]:
        """The statistics of the probe's tensor, one entry a batch, with every earlier adjustment in force."""
        self._reach(probe.tensor)
        made = self._walk(self.plan.producer.get(probe.tensor, -1) + 1, probe.outputs, [probe])
        return [read_probe(probe, batch) for batch in made]

    def ahead(self, tensor: str) -> bool:
        """True for a tensor whose node has not run yet: it will with the parameters that it has by then."""
        return self.plan.producer.get(tensor, -1) >= self._stop

    def sums(self, wide: Wide) -> Iterator[Groups]:
        """Batch by batch the sums that give the statistics of its target, which is ahead, with every earlier adjustment in force.

        To be gone through.
        """
        self._reach(wide.target)
        for made in self._walk(self.plan.producer[wide.target], wide.outputs, [wide]):
            yield read_probe(wide, made)

    def values(self, tensors: Sequence[str], stop: int = 0) -> list[dict[str, Live]]:
        """The named tensors, one entry a batch, once the nodes before number ``stop`` have run.

        They are the announced targets that come next, in their order.
        """
        for tensor in tensors:
            self._reach(tensor)
        behind = max((self.plan.producer.get(tensor, -1) + 1 for tensor in tensors), default=0)
        return list(self._walk(max(stop, behind), tensors, []))

    def _reach(self, tensor: str) -> None:
        """Drop the target, and those before it, from what is still to come."""
        if tensor not in self._targets:
            raise ValueError(f"{tensor}: was not announced as a target")
        self._targets = self._targets[self._targets.index(tensor) + 1 :]

    def _walk(self, stop: int, wanted: Sequence[str], probes: Sequence[Probe | Wide]) -> Iterator[dict[str, Any]]:
        """Run the nodes up to ``stop``, keep what is still needed, and give the wanted tensors of every batch; to be gone through.

        Those of the probes come as arrays of their own: an OrtValue keeps all that came out of its run.
        """
        # Never back: a tensor may be made before the last point and asked for after it, as in conv1, conv2, norm2, norm1.
        stop = self._stop = max(self._stop, stop)
        after = self.plan.live(stop, self._targets, self._ends)
        first = self.stages_run == 0
        self.stages_run += 1
        raw = {name for name, how in self._repaired.items() if how.source == name}  # live ones are as they were before their repair
        statistics = {name for probe in probes for name in probe.outputs}
        incoming = self._incoming() if first else iter(())
        self._live += list(islice(incoming, 1))
        if not self._live:
            return
        types = self._types(first)  # the first batch tells which tensors are live
        asked = {name for name in wanted if name not in statistics and (name not in types or name in raw)}
        keep = sorted((after - set(types)) | asked)
        names = [*sorted(statistics), *keep]
        session: Any = None
        inputs: dict[str, str] = {}
        seen: dict[Shapes, dict[str, LiveLike]] = {}
        if names:
            one_node = ONE_NODE[self._device.kind]
            stage, inputs = stages.cut(self._model, self.plan, stop, types, keep, probes, self._repaired, one_node=one_node)
            session = open_session(stage, self._device, lean=True, arena=self._memory.roomy)

        def advanced(number: int) -> dict[str, Any]:
            """Bring one batch to the new point; no thread touches another's."""
            live = self._live[number]
            given = tuple(tuple(live[name].shape()) for name in inputs.values())
            into = self._room(seen.get(given, {}))
            made = self._run(session, live, inputs, names, statistics, into) if names else {}
            stay = {name: value for name, value in live.items() if name in after or (name in wanted and name not in made)}
            if first:
                stay = {name: self._memory.hold(value.value(), self._device) for name, value in stay.items()}
            kept = self._live[number] = {name: value for name, value in stay.items() if name in after}
            del live  # what is over goes before what is new comes
            placed = {name for name in into if made[name] is into[name]}
            new = {name: self._memory.hold(made.pop(name), self._device, placed=name in placed) for name in keep}
            seen[given] = {name: (held.shape(), held.element_type()) for name, held in new.items()}
            fresh = {**stay, **new}
            kept.update((name, fresh[name]) for name in keep if name in after and name not in raw)
            return {name: np.array(as_array(made[name])) if name in made else fresh[name] for name in wanted}

        def numbers() -> Iterator[int]:
            yield from range(len(self._live))
            for live in incoming:
                self._live.append(live)
                del live
                yield len(self._live) - 1

        yield from several(advanced, numbers(), self._device.at_once)

    def finish(self, outputs: Sequence[str], most: int) -> list[list[Live]]:
        """Tensors behind the walk for the first ``most`` batches, by the parameters of now; the walk stays.

        They are targets that were announced and are still to come.
        """
        types = self._types()
        names = [name for name in outputs if name not in types]
        if names:
            stop = len(self._model.graph.node)
            stage, inputs = stages.cut(self._model, self.plan, stop, types, names, (), self._repaired)
            session = open_session(stage, self._device, lean=True, arena=self._memory.roomy)
        results = []
        for live in self._live[:most]:
            made = self._run(session, live, inputs, names) if names else {}
            fresh = {name: self._memory.hold(made.pop(name), self._device) for name in names}
            results.append([fresh[name] if name in fresh else live[name] for name in outputs])
        return results

    def _room(self, like: Mapping[str, LiveLike]) -> dict[str, Any]:
        """Room in memory for tensors of such shapes and types, where it is given out beforehand: a run writes them where they stay."""
        found = {name: self._memory.room(*of, self._device) for name, of in like.items()}
        return {name: place for name, place in found.items() if place is not None}

    def _run(
        self,
        session: Any,
        live: dict[str, Live],
        inputs: dict[str, str],
        names: Sequence[str],
        host: Container[str] = (),
        into: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """One batch through a stage, whose inputs are live tensors by name; what is in ``host`` leaves the device.

        What is in ``into`` is written there, unless its shape is another one than there: shapes may depend on values.
        """
        feed = {name: live[source].value() for name, source in inputs.items()}
        try:
            return run_bound(session, feed, names, self._device, host, into)
        except RuntimeFailure:
            if not into:
                raise
            return run_bound(session, feed, names, self._device, host)

    def adjust(self, tensor: str, gain: NDArray[np.float64], shift: NDArray[np.float64], axis: int, source: str | None = None) -> None:
        """From here on the tensor reads as gain * source + shift: what its repaired layer, or BatchNormalization, gives.

        ``source`` is the tensor itself unless told otherwise. One that has not run yet will run with the new parameters.
        """
        if not self.ahead(source or tensor):
            self._repaired[tensor] = stages.Repaired(source or tensor, gain, shift, axis)

    def _incoming(self) -> Iterator[dict[str, Live]]:
        passing = Memory()  # most inputs are read once: those that stay are held when that is known
        for batch in self._batches:
            yield {name: passing.hold(to_device(value, self._device), self._device) for name, value in batch.items()}

    def _types(self, first: bool = False) -> dict[str, stages.LiveType]:
        """Element type and shape of every live tensor; a dimension that differs between batches is None."""
        if first:  # later batches may be shorter, and their lengths are not known yet
            return {name: (value.element_type(), (None,) * len(value.shape())) for name, value in self._live[0].items()}
        types: dict[str, stages.LiveType] = {}
        for name, value in self._live[0].items():
            shapes = [live[name].shape() for live in self._live]
            dims = [column[0] if len(set(column)) == 1 else None for column in zip(*shapes, strict=True)]
            types[name] = (value.element_type(), tuple(dims))
        return types


def read_probe(probe: Probe | Wide, made: dict[str, Any]) -> Groups:
    """The statistics of one batch from a stage's outputs (OrtValues or arrays)."""
    return probe.read(*(as_array(made[name]) for name in probe.outputs))


def one_pass(
    model: onnx.ModelProto, probes: Sequence[Probe | Wide], batches: Iterable[Batch], device: Device, memory: Memory | None = None
) -> Iterator[list[Groups]]:
    """Per batch, the statistics of every probe, in one plain pass of a model that does not change on the way."""
    copy = stages.tapped(model, probes, one_node=ONE_NODE[device.kind])
    del copy.graph.output[: len(model.graph.output)]
    names = [name for probe in probes for name in probe.outputs]
    with session_of(copy, device, lean=True, arena=(memory or Memory()).roomy) as session:
        del copy

        def read(batch: Batch) -> list[Groups]:
            made = dict(zip(names, run_session(session, batch, names), strict=True))
            return [read_probe(probe, made) for probe in probes]

        yield from several(read, batches, device.at_once)
