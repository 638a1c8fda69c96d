"""Train the digits example and write it as ONNX: python tools/make_digits.py [--out examples/01_digits].

Needs torch and scikit-learn on top of what onnxprune itself installs; neither is a dependency of the package:

    pip install torch scikit-learn

The network is a small residual classifier for scikit-learn's 8x8 digits: a stem, three residual blocks, the second of
which halves the image and has a projection shortcut, a global average pool and a linear layer. It is trained on the
training split only, from a fixed seed on one CPU thread (about 40 seconds), so the same torch build on the same kind of
CPU writes the same files:

    digits.onnx         every BatchNormalization is a node
    digits_folded.onnx  the same function, every BatchNormalization folded into the convolution before it
    calib.npz           image: 512 images of the training split, no labels
    test.npz            image and labels: the test split, which training never sees
"""

import argparse
import copy
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

SEED = 0
TEST_SAMPLES = 600
CALIBRATION_SAMPLES = 512
EPOCHS = 40
BATCH = 63  # 1197 = 19 * 63: no ragged last batch disturbs the BatchNorm statistics
LEARNING_RATE = 0.1
WEIGHT_DECAY = 1e-3
OPSET = 17
INPUT = "image"
OUTPUT = "logits"


class ConvNorm(nn.Module):
    """A convolution without bias, then BatchNorm.

    The biases of two BatchNorms that meet in an addition have the same gradient. Started at zero they would stay equal,
    and the exporter would merge them into one shared initializer; so they start at small random values.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        nn.init.normal_(self.norm.bias, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3)
        same_shape = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same_shape else ConvNorm(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Digits(nn.Module):
    """(N, 1, 8, 8) images in 0..1 to (N, 10) logits."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.stem = ConvNorm(1, width, 3)
        self.block1 = Residual(width, width)
        self.block2 = Residual(width, 2 * width, stride=2)
        self.block3 = Residual(2 * width, 2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(torch.relu(self.stem(image)))))
        return self.classifier(self.pool(x).flatten(1))


def split_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test images, float32 (N, 1, 8, 8) in 0..1, then training and test labels, int64; stratified."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    return train_test_split(images, labels, test_size=TEST_SAMPLES, stratify=labels, random_state=SEED)


def shift(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by -1, 0 or 1 pixel each way, at random; zeros come in at the edge."""
    rows, columns = torch.randint(0, 3, (2, len(images), 1, 1))
    grid = torch.arange(8)
    which = torch.arange(len(images))[:, None, None]
    return pad(images, (1, 1, 1, 1))[which, 0, rows + grid[:, None], columns + grid][:, None]


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    """A trained network in eval mode."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, cycle_momentum=False)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = cross_entropy(model(shift(x[batch])), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {total / len(x):.4f}")
    return model.eval()


def fold(model: Digits) -> Digits:
    """A copy in which each BatchNorm is part of its convolution."""
    folded = copy.deepcopy(model)
    for module in folded.modules():
        if isinstance(module, ConvNorm):
            module.conv, module.norm = fuse_conv_bn_eval(module.conv, module.norm), nn.Identity()
    return folded


def export(model: Digits, path: Path) -> None:
    """Write the model as it stands; the exporter may not fold BatchNorm by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exporter that dynamo=False asks for is the old one
        torch.onnx.export(
            model,
            (torch.zeros(2, 1, 8, 8),),
            path,
            dynamo=False,  # keeps the module names in the names of nodes and initializers, needs no onnxscript
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold; the model is in eval mode and stays there
            do_constant_folding=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    onnx.checker.check_model(path, full_check=True)


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """The logits ONNX Runtime computes, float32 (N, 10)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: images})[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits example and write it as ONNX.")
    parser.add_argument("--out", type=Path, default=Path("examples/01_digits"), help="folder for the four files")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    train_images, test_images, train_labels, test_labels = split_digits()
    model = train(train_images, train_labels)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    with torch.no_grad():
        expected = model(torch.from_numpy(test_images)).numpy()
    print(f"{weights} weights in convolutions and the linear layer")
    print(f"torch: test accuracy {100 * np.mean(expected.argmax(1) == test_labels):.2f} % of {len(test_labels)}")

    for name, variant in {"digits.onnx": model, "digits_folded.onnx": fold(model)}.items():
        export(variant, out / name)
        logits = run(out / name, test_images)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        norms = sum(node.op_type == "BatchNormalization" for node in onnx.load(out / name).graph.node)
        print(
            f"{name}: test accuracy {100 * np.mean(logits.argmax(1) == test_labels):.2f} %, "
            f"{norms} BatchNormalization nodes, at most {np.abs(logits - expected).max():.1e} from torch"
        )

    chosen = np.random.default_rng(SEED).choice(len(train_images), CALIBRATION_SAMPLES, replace=False)
    np.savez_compressed(out / "calib.npz", **{INPUT: train_images[chosen]})
    np.savez_compressed(out / "test.npz", **{INPUT: test_images, "labels": test_labels})


if __name__ == "__main__":
    main()
