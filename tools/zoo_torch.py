"""Export small networks from torch by both of its exporters: a transformer, a GRU, a U-Net with GroupNorm, a ConvNeXt block and others.

Runs in an environment of its own with torch, onnxscript, scikit-learn and skl2onnx; tools/zoo_files.py makes it and calls this.

    python tools/zoo_torch.py FOLDER
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

warnings.filterwarnings("ignore")


class Transformer(nn.Module):
    """Token ids -> logits; embedding, learned positions, two encoder blocks, a head tied to the embedding."""

    def __init__(self, width=64, words=200, length=24):
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(1, length, width) * 0.1)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.norm(self.blocks(self.embed(ids) + self.place)))


class Recurrent(nn.Module):
    """Sequences -> classes; two layers of a recurrent kind in both directions."""

    def __init__(self, kind, width=32):
        super().__init__()
        self.net = kind(16, width, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        return self.head(self.net(x)[0][:, -1])


class Block(nn.Module):
    """Conv, GroupNorm, SiLU, twice, with a residual."""

    def __init__(self, inner, outer):
        super().__init__()
        self.first, self.second = nn.Conv2d(inner, outer, 3, padding=1), nn.Conv2d(outer, outer, 3, padding=1)
        self.one, self.two = nn.GroupNorm(4, outer), nn.GroupNorm(4, outer)
        self.skip = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        h = nn.functional.silu(self.one(self.first(x)))
        return nn.functional.silu(self.two(self.second(h)) + self.skip(x))


class UNet(nn.Module):
    """Down twice, up twice by ConvTranspose, with skips."""

    def __init__(self, width=16):
        super().__init__()
        self.a, self.b, self.c = Block(3, width), Block(width, 2 * width), Block(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.d, self.e = Block(4 * width, 2 * width), Block(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        a = self.a(x)
        b = self.b(nn.functional.max_pool2d(a, 2))
        c = self.c(nn.functional.max_pool2d(b, 2))
        d = self.d(torch.cat([self.up2(c), b], 1))
        return self.out(self.e(torch.cat([self.up1(d), a], 1)))


class ConvNeXt(nn.Module):
    """A stem and two ConvNeXt blocks with layer scale."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.dw, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width, eps=1e-6)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.gamma = nn.Parameter(torch.full((width,), 0.5))

        def forward(self, x):
            h = self.norm(self.dw(x).permute(0, 2, 3, 1))
            return x + (self.gamma * self.down(nn.functional.gelu(self.up(h)))).permute(0, 3, 1, 2)

    def __init__(self, width=32):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(self.Block(width), self.Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class Decoder(nn.Module):
    """Mel frames and tokens -> logits: an encoder of 1-D convolutions, a decoder with causal and cross attention."""

    def __init__(self, width=48, words=120):
        super().__init__()
        self.c1, self.c2 = nn.Conv1d(20, width, 3, padding=1), nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.encoder = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.embed = nn.Embedding(words, width)
        self.decoder = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, words, bias=False)
        self.register_buffer("mask", torch.triu(torch.full((12, 12), -1e4), 1))

    def forward(self, mel, ids):
        h = nn.functional.gelu(self.c2(nn.functional.gelu(self.c1(mel))))
        return self.head(self.decoder(self.embed(ids), self.encoder(h.transpose(1, 2)), tgt_mask=self.mask))


class RMSNorm(nn.Module):
    """Written out, as language models have it."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class RMSNet(nn.Module):
    """A gated MLP block with RMSNorm, as in today's language models, and Einsum projections into heads."""

    def __init__(self, width=48):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q = nn.Parameter(torch.randn(width, 4, 12) * 0.15)
        self.o = nn.Parameter(torch.randn(4, 12, width) * 0.15)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((width, 96), (width, 96), (96, width)))

    def forward(self, x):
        q = torch.einsum("btc,chd->bthd", self.norm1(x), self.q)
        a = torch.softmax(torch.einsum("bthd,bshd->bhts", q, q) / 12**0.5, -1)
        x = x + torch.einsum("bhts,bshd,hdc->btc", a, q, self.o)
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def shapes(count, size=32):
    """Images (count, 3, size, size) of one of ten patterns, with colour, place and noise of their own; class, and mask of the pattern."""
    grid = torch.arange(size).float()
    kind = torch.randint(0, 10, (count,))
    x0, y0 = (torch.randint(8, size - 8, (count, 1, 1)).float() for _ in range(2))
    dx, dy = (grid.view(1, 1, -1) - x0).abs(), (grid.view(1, -1, 1) - y0).abs()
    radius = (dx**2 + dy**2).sqrt()
    k = kind.view(-1, 1, 1)
    mask = torch.where(k < 5, radius < 3 + k, torch.maximum(dx, dy) < k - 2).float()
    colour = torch.rand(count, 3, 1, 1) * 2 - 1
    return mask.unsqueeze(1) * colour + 0.15 * torch.randn(count, 3, size, size) - 0.3, kind, mask.long()


def chains(count, length, words):
    """Token ids of a random walk in which every word has four likely followers."""
    generator = torch.Generator().manual_seed(1)
    follow = torch.randint(0, words, (words, 4), generator=generator)
    ids = [torch.randint(0, words, (count,))]
    for _ in range(length):
        ids.append(follow[ids[-1], torch.randint(0, 4, (count,))])
    return torch.stack(ids, 1)


def waves(count, length=12, width=16):
    """Sequences of ten kinds, (count, length, width), and the kind."""
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(10, length, width, generator=generator)
    kind = torch.randint(0, 10, (count,))
    return base[kind] * torch.rand(count, 1, 1) + 0.4 * torch.randn(count, length, width), kind


def batch_of(name, count):
    """Inputs and target of a task on which a small network learns something within seconds."""
    if name == "transformer":
        ids = chains(count, 24, 200)
        return (ids[:, :-1],), ids[:, 1:]
    if name in ("gru", "lstm"):
        x, kind = waves(count)
        return (x,), kind
    if name in ("unet", "convnext"):
        x, kind, mask = shapes(count)
        return (x,), mask if name == "unet" else kind
    if name == "decoder":
        ids = chains(count, 12, 120)
        mel = nn.functional.one_hot(ids[:, :12] % 20, 20).float().transpose(1, 2).repeat_interleave(3, 2)[:, :, :32]
        return (mel + 0.2 * torch.randn_like(mel), ids[:, :-1]), ids[:, 1:]
    x, _ = waves(count, 10, 48)
    return (x,), x.roll(1, 1).cumsum(1) / 4


def trained(name, net, steps=250):
    """The network after some steps of Adam on its task; random weights would say little about pruning."""
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(steps):
        inputs, target = batch_of(name, 48)
        out = net(*inputs)
        if target.is_floating_point():
            loss = nn.functional.mse_loss(out, target)
        else:
            loss = nn.functional.cross_entropy(out.flatten(0, 1) if out.ndim == 3 else out, target.flatten() if out.ndim == 3 else target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"trained {name}: loss {loss.item():.3f}")
    return net.eval()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    nets = {
        "transformer": (Transformer(), ["ids"]),
        "gru": (Recurrent(nn.GRU), ["x"]),
        "lstm": (Recurrent(nn.LSTM), ["x"]),
        "unet": (UNet(), ["x"]),
        "convnext": (ConvNeXt(), ["x"]),
        "decoder": (Decoder(), ["mel", "ids"]),
        "rmsnet": (RMSNet(), ["x"]),
    }
    for name, (net, names) in nets.items():
        net = trained(name, net)
        inputs = batch_of(name, 2)[0]
        samples = {key: value.numpy() for key, value in zip(names, batch_of(name, 64)[0], strict=True)}
        for form in ("script", "dynamo"):
            target = folder / f"{name}_{form}.onnx"
            np.savez(target.with_suffix(".npz"), **samples)
            try:
                if form == "script":
                    axes = {entry: {0: "N"} for entry in [*names, "y"]}
                    torch.onnx.export(
                        net, inputs, str(target), dynamo=False, input_names=names, output_names=["y"], dynamic_axes=axes, opset_version=17
                    )
                else:
                    free = tuple({0: torch.export.Dim("N")} for _ in names)
                    torch.onnx.export(
                        net,
                        inputs,
                        str(target),
                        dynamo=True,
                        input_names=names,
                        output_names=["y"],
                        dynamic_shapes=free,
                        external_data=False,
                        optimize=name != "rmsnet",
                    )
                print("exported", target.name)
            except Exception as error:
                print("failed", target.name, str(error).splitlines()[0][:300])
    sklearn(folder / "sklearn_mlp.onnx")


def sklearn(target: Path) -> None:
    """A scaler and an MLP of scikit-learn on its digits, by skl2onnx."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    model = make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=60, random_state=0)).fit(x, y)
    target.write_bytes(to_onnx(model, x[:1], options={"zipmap": False}).SerializeToString())
    np.savez(target.with_suffix(".npz"), X=x[:400])
    print("exported", target.name)


if __name__ == "__main__":
    main()
