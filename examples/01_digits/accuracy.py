"""Top-1 accuracy of ONNX classifiers on a labelled .npz: python accuracy.py test.npz MODEL...

The labels are used here only, to show what the pruned model is worth. onnxprune never sees them.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose largest output is the label."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores, *_) = session.run(None, {session.get_inputs()[0].name: images})
    return float((scores.argmax(1) == labels).mean())


def main() -> None:
    data = np.load(sys.argv[1])
    images = next(data[name] for name in data.files if name != "labels")
    for name in sys.argv[2:]:
        print(f"{accuracy(Path(name), images, data['labels']):7.4f}  {name}")


if __name__ == "__main__":
    main()
