"""Writes features of EfficientNet-Lite0 and of the FID's Inception for weights by formula.

They are those of the packages efficientnet_lite_pytorch and pytorch_fid. Run where these, torch and
torchvision are installed, `python tests/reference/make_torch_features.py`, after a change to
formula.py. The tests read the files that it writes into its own folder; they need none of these.
"""

import json
import sys
from pathlib import Path

import formula
import numpy as np
import torch

FOLDER = Path(__file__).parent
COUNT = 2
SCALE = 0.75
SIDES = {"efficientnet_lite0": 64, "inception": 75}  # 75: the least that Inception takes


def efficientnet_lite0():
    """Returns the network for images of its side here, and its features and logits."""
    from efficientnet_lite_pytorch import EfficientNet

    # Its padding is fixed by the side that it is made for.
    net = EfficientNet.from_name("efficientnet-lite0", image_size=SIDES["efficientnet_lite0"])

    def run(x):
        return {"features": net.extract_features(x).mean(dim=(2, 3)), "logits": net(x)}

    return net, run


def inception():
    """Returns the network of pytorch-fid without its published weights, and its features."""
    from pytorch_fid import inception as peer

    made = []

    def load_nothing(*_, **__):
        # `load_state_dict` comes next: the weights that the network has are given back to it.
        return made[0].state_dict()

    build = peer._inception_v3

    def keep(*args, **named):
        made.append(build(*args, **named))
        return made[0]

    peer._inception_v3 = keep
    peer.load_state_dict_from_url = load_nothing
    net = peer.InceptionV3(resize_input=False, normalize_input=False)
    return made[0], lambda x: {"features": net(x)[0].flatten(1)}


def fill(net):
    """Fills every tensor by its name and shape; returns {name: shape}."""
    state = net.state_dict()
    shapes = {
        name: tuple(x.shape)
        for name, x in state.items()
        if not name.endswith("num_batches_tracked")
    }
    for name, shape in shapes.items():
        state[name].copy_(torch.from_numpy(formula.tensor(name, shape, SCALE)))
    return shapes


def case(name, make):
    """Runs the network in evaluation mode on images by formula, scaled to about [-1, 1]."""
    net, run = make()
    net.eval()
    shapes = fill(net)
    pixels = torch.from_numpy(formula.images(COUNT, SIDES[name])).float()
    with torch.no_grad():
        found = run(((pixels - 128) / 128).permute(0, 3, 1, 2))
    # Six digits: the tests compare four.
    rounded = {key: np.char.mod("%.6g", x.numpy()).astype(float) for key, x in found.items()}
    return {"shapes": shapes} | {key: x.tolist() for key, x in rounded.items()}


MAKERS = {"efficientnet_lite0": efficientnet_lite0, "inception": inception}


if __name__ == "__main__":
    for name in sys.argv[1:] or MAKERS:
        found = {"count": COUNT, "side": SIDES[name], **case(name, MAKERS[name])}
        (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=None) + "\n")
