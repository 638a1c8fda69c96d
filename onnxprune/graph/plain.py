"""Whether a model can be run without a trial: its operators are plain ones, and every tensor's size is known and moderate.

A file from a stranger may make a tensor of any size (Resize, Tile, Expand, ConstantOfShape; or thirty Concats of a tensor with itself),
run for ever (Loop), or meet a kernel that crashes. Shapes, inferred from those of a batch, tell the sizes beforehand for most models;
where they do not, or where an operator is none of the list, the model is tried first (onnxprune.runtime.trial). This takes 1 to 20 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import onnx
from onnx import helper, numpy_helper, shape_inference

from onnxprune.graph.arithmetic import MOST, computed
from onnxprune.graph.mapped import is_mapped
from onnxprune.graph.walk import CORE, label, opset_of

LARGE = 2**26
"""Elements a sample that all tensors may have together, without a trial; the real files of docs/zoo.md have 20 thousand to 95 million."""
MANY = 5_000
"""More nodes are tried first: ONNX Runtime takes more than its time for long chains (30,000 nodes: a minute and more)."""
_NAMES = """
Abs Add And ArgMax ArgMin AveragePool BatchNormalization BitShift Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv
ConvInteger ConvTranspose Cos DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand Flatten Floor GRU
Gather GatherElements Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity
InstanceNormalization LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul MatMulInteger Max MaxPool Mean Min Mish
Mod Mul Neg Not Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Selu Shape Sigmoid Sign Sin Size
Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh Tile Transpose Unsqueeze Where Xor
"""
PLAIN = frozenset(_NAMES.split())
"""Operators whose work is bounded by the sizes of what they read and give, and that are in daily use. Einsum is not: it can crash."""
VARIADIC = ("Concat", "Max", "Mean", "Min", "Sum")
"""Plain operators with any number of inputs: one that is left out is no error until ONNX Runtime 1.31 reads it, and crashes."""


def unusual(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], batch: int) -> str:
    """Why a model should be tried before it runs here, empty when it need not; ``shapes`` are those of ``batch`` samples, by input."""
    if len(model.graph.node) > MANY:
        return f"its {len(model.graph.node):,} nodes"
    for node in model.graph.node:
        if node.op_type not in PLAIN or node.domain not in CORE:
            return f"{node.op_type} {label(node)!r}"
        if node.op_type in VARIADIC and not all(node.input):
            return f"{node.op_type} {label(node)!r}, one of whose inputs is left out"
    sizes = sizes_of(model, shapes)
    if sizes is None:
        return "shapes that do not fit"
    total = 0
    for node in model.graph.node:
        for name in filter(None, node.output):
            if name not in sizes:
                return f"the size of {name!r}, which is not known beforehand"
            total += sizes[name]
            if total > LARGE * batch:
                return f"the sizes of {name!r} and of what is before it"
    return ""


def sizes_of(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Tensor -> its number of elements, for those whose size is known beforehand; None when the shapes of the inputs do not fit."""
    outline = _outline(model, shapes)
    try:
        inferred = shape_inference.infer_shapes(outline, data_prop=True).graph
    except Exception:  # the runtime will say so
        return None
    sizes = {value.name: size for value in (*inferred.value_info, *inferred.output) if (size := _size(value)) is not None}
    return sizes | {tensor.name: prod(tensor.dims) for tensor in outline.graph.initializer}


def held(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The elements that a run holds at once beside the weights, as a rule of thumb: the most that one node reads and gives, and as much
    again for what goes around it. None when a size is not known beforehand."""
    sizes = sizes_of(model, shapes)
    if sizes is None or not all(name in sizes for node in model.graph.node for name in node.output if name):
        return None
    stored = {tensor.name for tensor in model.graph.initializer}
    sizes |= {name: prod(shape) for name, shape in shapes.items()}
    return 2 * max(sum(sizes.get(name, 0) for name in {*node.input, *node.output} - stored) for node in model.graph.node)


def _outline(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """The model without large values and without its own words on the shapes of what is computed."""
    outline = onnx.ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import)
    graph = outline.graph
    graph.name = "outline"
    fed = {value.name for value in model.graph.input}
    small = [tensor for tensor in model.graph.initializer if prod(tensor.dims) <= MOST and not is_mapped(tensor)]
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in small if tensor.name not in fed}
    opset = opset_of(model)
    for node in model.graph.node:
        large = next((tensor for tensor in _constants(node) if prod(tensor.dims) > MOST), None)
        values = computed(node, known, opset) if large is None else None
        if values is not None:
            known[node.output[0]] = values
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        elif large is None:
            graph.node.add().CopyFrom(node)
        else:
            graph.node.add(op_type="Identity", input=[f"{node.output[0]} "], output=node.output)
            graph.input.append(helper.make_tensor_value_info(f"{node.output[0]} ", large.data_type, large.dims))
    graph.initializer.extend(small)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) > MOST or is_mapped(tensor):
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    stored = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in stored:
            kind = value.type.tensor_type.elem_type
            graph.input.append(helper.make_tensor_value_info(value.name, kind, shapes.get(value.name)))
    graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in model.graph.output)
    return outline


def _constants(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    if node.op_type == "Constant" and node.output:
        yield from (entry.t for entry in node.attribute if entry.name == "value")


def _size(value: onnx.ValueInfoProto) -> int | None:
    """The number of elements, None when it is not known."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
        return None
    return int(prod(dim.dim_value for dim in kind.shape.dim))
