"""Writes torchvision's logits for weights by formula, and small files of torch.save.

Run where torch and torchvision are installed, `python tests/reference/make_torch_logits.py`, after
a change to formula.py. The tests read the files that it writes into its own folder; they need
neither package.
"""

import json
from pathlib import Path

import formula
import torch
import torchvision
from torch import nn

FOLDER = Path(__file__).parent


MEAN = torch.tensor([0.485, 0.456, 0.406])
DEVIATION = torch.tensor([0.229, 0.224, 0.225])


CLASSES = 10


def narrow_vgg11(width):
    """Returns torchvision's VGG-11 with BatchNorm, its width and head scaled to `width`."""
    cfg = [width * n if n != "M" else n for n in (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M")]
    net = torchvision.models.VGG(torchvision.models.vgg.make_layers(cfg, batch_norm=True), CLASSES)
    hidden = 64 * width
    net.classifier = nn.Sequential(
        *(nn.Linear(8 * width * 7 * 7, hidden), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, CLASSES)),
    )
    return net


def fill(net):
    """Fills every tensor by its name and shape; returns {name: shape}."""
    state = net.state_dict()
    shapes = {
        name: tuple(x.shape)
        for name, x in state.items()
        if not name.endswith("num_batches_tracked")
    }
    for name, shape in shapes.items():
        state[name].copy_(torch.from_numpy(formula.tensor(name, shape)))
    return shapes


def case(net, count, side):
    """Runs the network in evaluation mode on images by formula, standardised for ImageNet."""
    shapes = fill(net)
    pixels = torch.from_numpy(formula.images(count, side)).float() / 255
    with torch.no_grad():
        logits = net.eval()(((pixels - MEAN) / DEVIATION).permute(0, 3, 1, 2))
    return {"count": count, "side": side, "shapes": shapes, "logits": logits.tolist()}


def tiny():
    """Writes tensors of every type that is read, some strided or shared; returns their values."""
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    tensors = {
        "float": base,
        "transposed": base.T,
        "column": base[:, 1],
        "half": torch.tensor([0.5, -2.0, 65504.0]).half(),
        "bfloat": torch.tensor([1.0, -3.140625, 1e30]).bfloat16(),
        "double": torch.tensor([[1e-300]], dtype=torch.float64),
        "long": torch.tensor([2**40, -1]),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "expanded": torch.tensor([5.0]).expand(4),
        "parameter": nn.Parameter(torch.tensor([1.5, 2.5])),
    }
    checkpoint = {"epoch": 3, "state_dict": {f"module.{name}": x for name, x in tensors.items()}}
    torch.save(checkpoint, FOLDER / "tiny.pth")
    # As PyTorch wrote before 1.6.
    old = FOLDER / "tiny_old.pth"
    torch.save(checkpoint, old, _use_new_zipfile_serialization=False)
    return {name: {"dtype": str(x.dtype), "values": x.tolist()} for name, x in tensors.items()}


def write(name, value):
    """Writes a JSON file into this folder."""
    (FOLDER / name).write_text(json.dumps(value, indent=None) + "\n")


if __name__ == "__main__":
    models = torchvision.models
    write("resnet18.json", case(models.resnet18(num_classes=CLASSES), 2, 64))
    write("resnet50.json", case(models.resnet50(num_classes=CLASSES), 2, 64))
    write("vgg11.json", case(narrow_vgg11(8), 2, 96))
    write("tiny.json", tiny())
