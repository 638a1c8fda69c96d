"""The errors onnxprune raises on purpose: one line each, with what, which, got and expected, and what to do."""


class OnnxpruneError(Exception):
    """A problem the user can act on. ``exit_code`` is what the command line returns for it."""

    exit_code = 1

    def __str__(self) -> str:
        """One line, whatever names of the model or words of a library are in it, cut at 1,000 characters."""
        text = " ".join(super().__str__().splitlines())
        return text if len(text) <= 1000 else text[:997] + "..."


class ModelError(OnnxpruneError):
    """The ONNX file cannot be read, run or written, or has nothing to prune."""


class CalibrationError(OnnxpruneError):
    """The calibration samples are missing, unreadable or do not fit the model's inputs."""


class AllocationError(OnnxpruneError):
    """The asked sparsity cannot be shared out over the layers."""


class RuntimeFailure(OnnxpruneError):
    """ONNX Runtime cannot run the model, or not on the asked device."""


class OutOfMemory(RuntimeFailure):
    """What was to run did not fit in memory; smaller batches may."""


class UsageError(OnnxpruneError):
    """Options that contradict each other or name something that is not there."""

    exit_code = 2


class GateError(OnnxpruneError):
    """The repaired model misses the asked agreement; nothing was written."""

    exit_code = 3
