"""A CUDA device that is none: ONNX Runtime's CPU provider behind the API of a device, so that the code for one runs where there is no GPU.

What is "on the device" can be read in one way alone, by copying it to the host, as on a real one: as an array or by its address it gives
nothing. Every copy is counted, what is on the device too, and beyond its capacity there is no memory. Sessions must ask for what they
would need on CUDA.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxprune.runtime import grams, rows, session

FULL = "CUDA failure 2: out of memory ; GPU=0 ; hostname=fake ; file=cuda_allocator.cc ; line=48 ; expr=cudaMalloc((void**)&p, size);"
NEEDED = {"device_id", "use_tf32", "cudnn_conv_algo_search", "arena_extend_strategy"}


@dataclass
class Traffic:
    """Bytes and arrays that went to the device (``up``) and to the host (``down``), and what the device holds."""

    capacity: float = float("inf")
    up: int = 0
    down: int = 0
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    """Of all that came down."""
    read: int = 0
    """Tensors that were on the device and were copied from there: what a run is asked to give on the host does not count."""
    held: int = 0
    peak: int = 0
    sessions: int = 0

    def take(self, nbytes: int) -> None:
        """Room on the device.

        Raises:
            RuntimeError: there is none.
        """
        if self.held + nbytes > self.capacity:
            raise RuntimeError(FULL)
        self.held += nbytes
        self.peak = max(self.peak, self.held)

    def give(self, nbytes: int) -> None:
        self.held -= nbytes

    def came(self, array: Any) -> Any:
        self.down += array.nbytes
        self.shapes.append(array.shape)
        return array


class Far:
    """A tensor on the device."""

    def __init__(self, value: Any, traffic: Traffic) -> None:
        if value.data_type() == "tensor(string)":
            raise RuntimeError("a device holds no strings")
        self.value, self._traffic = value, traffic
        nbytes = value.tensor_size_in_bytes()
        traffic.take(nbytes)
        weakref.finalize(self, traffic.give, nbytes)

    def shape(self) -> list[int]:
        return list(self.value.shape())

    def element_type(self) -> int:
        return int(self.value.element_type())

    def data_ptr(self) -> int:
        return 256  # an address of the device, aligned as CUDA does

    def numpy(self) -> Any:
        self._traffic.read += 1
        return self._traffic.came(np.array(self.value.numpy()))

    def __array__(self, *given: Any, **named: Any) -> Any:
        raise TypeError("a tensor on a device is no array")


class Binding:
    """IOBinding whose outputs stay where they were asked for."""

    def __init__(self, made: Any, traffic: Traffic) -> None:
        self.real, self._traffic = made.io_binding(), traffic
        self._places: list[str] = []
        self._kept: list[Any] = []
        self._made: list[Any] = []

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        self._kept.append(value)
        self.real.bind_ortvalue_input(name, value.value if isinstance(value, Far) else value)

    def bind_output(self, name: str, kind: str, index: int) -> None:
        assert (kind, index) in (("cpu", 0), ("cuda", 0)), (kind, index)
        self._places.append(kind)
        self.real.bind_output(name, "cpu", 0)

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        assert not isinstance(value, Far), "a session on the CPU was told to write to the device"
        self._places.append("there")
        self.real.bind_ortvalue_output(name, value)

    def ran(self) -> None:
        """Put the outputs of a run where they belong."""
        for value, place in zip(self.real.get_outputs(), self._places, strict=True):
            if place == "cpu" and value.data_type() != "tensor(string)":
                self._traffic.came(value.numpy())
            self._made.append(Far(value, self._traffic) if place == "cuda" else value)

    def get_outputs_as_ortvaluevector(self) -> list[Any]:
        return self._made


class Session:
    """A session that says that it runs on CUDA."""

    def __init__(self, traffic: Traffic, source: Any, options: Any, providers: Any, enable_fallback: int = 1) -> None:
        traffic.sessions += 1
        self._traffic = traffic
        self._providers = [provider if isinstance(provider, str) else provider[0] for provider in providers]
        if self._providers[0] == session.CUDA:
            assert set(providers[0][1]) >= NEEDED
            assert providers[0][1]["use_tf32"] == 0
            assert options.use_deterministic_compute
        self.real = ort.InferenceSession(source, options, providers=[session.CPU], enable_fallback=enable_fallback)

    def get_providers(self) -> list[str]:
        return self._providers

    def get_outputs(self) -> Any:
        return self.real.get_outputs()

    def run(self, names: Any, feed: Any, options: Any = None) -> Any:
        self._traffic.up += sum(value.nbytes for value in feed.values())
        return self.real.run(names, feed)

    def io_binding(self) -> Binding:
        return Binding(self.real, self._traffic)

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        if self._providers[0] == session.CUDA:
            assert options.get_run_config_entry("memory.enable_memory_arena_shrinkage") == "gpu:0"
        self.real.run_with_iobinding(binding.real)
        binding.ran()


class Runtime:
    """What the module onnxruntime is for `onnxprune.runtime.session`."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def __getattr__(self, name: str) -> Any:
        return getattr(ort, name)

    def InferenceSession(self, *given: Any, **named: Any) -> Session:  # noqa: N802
        return Session(self._traffic, *given, **named)

    @property
    def OrtValue(self) -> Any:  # noqa: N802
        traffic = self._traffic

        class Value:
            def __new__(cls, value: Any, keeper: Any) -> Any:
                return value

            ortvalue_from_numpy_with_onnx_type = staticmethod(ort.OrtValue.ortvalue_from_numpy_with_onnx_type)

            @staticmethod
            def ortvalue_from_numpy(array: Any, kind: str, index: int) -> Any:
                if kind == "cpu":
                    return ort.OrtValue.ortvalue_from_numpy(array, "cpu", 0)
                assert (kind, index) == ("cuda", 0)
                traffic.up += array.nbytes
                return Far(ort.OrtValue.ortvalue_from_numpy(np.array(array), "cpu", 0), traffic)

        return Value


class Vector(list[Any]):
    """OrtValueVector."""

    push_back = list.append


def install(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """Let `onnxprune.runtime.session` find a CUDA device of index 0 for the rest of the test; call `forget` behind it."""
    traffic = Traffic()
    forget()
    monkeypatch.setattr(session, "ort", Runtime(traffic))
    monkeypatch.setattr(session, "OrtValueVector", Vector)
    monkeypatch.setattr(session, "_cuda_starts", lambda index: index == 0)
    return traffic


def forget() -> None:
    """Let go of the sessions that are kept from one call to the next: a fake one would outlive its test."""
    for cached in (rows._session, grams._session, grams._shares):
        cached.cache_clear()
