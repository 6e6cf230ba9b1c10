"""Runs our cases in PyTorch with diffusers' UNet2DModel and a ResNet.

    python -m benchmarks.peers.cases --case=diffusion_train --mode=compiled --config={...}

`benchmarks.compare` starts it in its own virtual environment (benchmarks/peers/requirements.txt).
Both modes run channels_last. The data lie on the device, and a step does what ours does: gather,
normalise, noise, network, clipping, AdamW, average of weights.
"""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import nn
from torch.nn import functional

from benchmarks.worker import Case, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


TIMESTEPS = 1000


class Folded(nn.Module):
    """diffusers' U-Net behind a space-to-depth stem, with our layer list."""

    def __init__(self, preset: dict[str, Any]):
        super().__init__()
        net = preset["unet"]
        self.stem = net["stem"]
        widths = [net["channels"] * m for m in net["multipliers"]]
        sides = [preset["side"] // self.stem // 2**i for i in range(len(widths))]
        attend = [side in net["attention"] for side in sides]
        self.net = UNet2DModel(
            sample_size=sides[0],
            in_channels=3 * self.stem**2,
            out_channels=3 * self.stem**2,
            block_out_channels=widths,
            layers_per_block=net["blocks"],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attend],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attend)],
            add_attention=any(attend),
            attention_head_dim=widths[-1] // net["heads"],
            norm_num_groups=min(32, max(1, widths[0] // 4)),
            dropout=net["dropout"],
            resnet_time_scale_shift="scale_shift" if net["scale_shift"] else "default",
            num_class_embeds=preset["classes"] + 1,
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """x float[N,3,H,W], t and label int64[N] -> float[N,3,H,W]."""
        h = functional.pixel_unshuffle(x, self.stem) if self.stem > 1 else x
        h = self.net(h, t, label).sample
        return functional.pixel_shuffle(h, self.stem) if self.stem > 1 else h


class Block(nn.Module):
    """Basic block of He et al. 2016."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width), nn.BatchNorm2d(width)])
        self.short = nn.Identity()
        if stride > 1 or inputs != width:
            self.short = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N,C,H,W] -> [N,width,H/stride,W/stride]."""
        h = self.norms[1](self.second(functional.relu(self.norms[0](self.first(x)))))
        return functional.relu(h + self.short(x))


def resnet(preset: dict[str, Any]) -> nn.Module:
    """Returns the ResNet of our `layout = small`."""
    width = preset["resnet"]["width"]
    inputs = width
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage, blocks in enumerate(preset["resnet"]["stages"]):
        for block in range(blocks):
            layers.append(Block(inputs, width * 2**stage, 2 if stage and not block else 1))
            inputs = width * 2**stage
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, preset["classes"])
    )


def build(preset: dict[str, Any], case: str, mode: str) -> Case:
    """Returns one case, eager or compiled."""
    torch.manual_seed(0)
    net = Folded(preset) if case in ("diffusion_train", "sample") else resnet(preset)
    net = net.to(DEVICE, memory_format=torch.channels_last)
    ready = torch.compile(net) if mode == "compiled" else net
    make = {
        "diffusion_train": _diffusion_train,
        "sample": _sample,
        "classifier_train": _classifier_train,
        "classifier_inference": _classifier_inference,
    }[case]
    call, images = make(preset, net, ready)

    def waited() -> None:
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return Case(waited, images, sum(p.numel() for p in net.parameters()))


def _autocast(preset: dict[str, Any]) -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=preset["precision"] == "bfloat16")


def _data(preset: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    side = preset["side"]
    pixels = torch.randint(
        0, 256, (preset["images"], 3, side, side), dtype=torch.uint8, device=DEVICE
    )
    return pixels, torch.arange(preset["images"], device=DEVICE) % preset["classes"]


def _trainer(net: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Returns a step of AdamW with clipping and a running average of the weights."""
    params = list(net.parameters())
    tx = torch.optim.AdamW(params, lr=1e-4, fused=True)
    average = [p.detach().clone() for p in params]

    def step() -> None:
        tx.zero_grad(set_to_none=True)
        loss().backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        tx.step()
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.001)

    return step


def _gather(pixels: torch.Tensor, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.randint(0, len(pixels), (batch,), device=DEVICE)
    x = pixels[index].float() / 127.5 - 1
    return index, x.contiguous(memory_format=torch.channels_last)


def _diffusion_train(preset: dict[str, Any], net: nn.Module, ready: nn.Module):
    pixels, label = _data(preset)
    batch = preset["diffusion_batch"]
    null = preset["classes"]
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMESTEPS, device=DEVICE), 0)

    def loss() -> torch.Tensor:
        index, x_0 = _gather(pixels, batch)
        t = torch.randint(0, TIMESTEPS, (batch,), device=DEVICE)
        eps = torch.randn_like(x_0)
        signal, noise = (s.sqrt()[:, None, None, None] for s in (alphas_bar[t], 1 - alphas_bar[t]))
        shown = torch.where(torch.rand(batch, device=DEVICE) < 0.1, null, label[index])
        with _autocast(preset):
            out = ready(signal * x_0 + noise * eps, t, shown)
        return functional.mse_loss(out.float(), signal * eps - noise * x_0)

    net.train()
    return _trainer(net, loss), batch


def _sample(preset: dict[str, Any], net: nn.Module, ready: nn.Module):
    net.eval()
    count = preset["sample_batch"]
    side = preset["side"]
    w = preset["guidance"]
    times = torch.linspace(TIMESTEPS - 1, 0, preset["sample_steps"], device=DEVICE).long()
    alphas_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMESTEPS, device=DEVICE), 0)
    label = torch.arange(count, device=DEVICE) % preset["classes"]
    both = torch.cat([label, torch.full_like(label, preset["classes"])])

    def call() -> None:
        x = torch.randn(count, 3, side, side, device=DEVICE).contiguous(
            memory_format=torch.channels_last
        )
        with torch.inference_mode(), _autocast(preset):
            for i, t in enumerate(times):
                after = (
                    alphas_bar[times[i + 1]]
                    if i + 1 < len(times)
                    else torch.ones((), device=DEVICE)
                )
                out = ready(torch.cat([x, x]), t.expand(2 * count), both).float()
                conditional, unconditional = out.chunk(2)
                v = (1 + w) * conditional - w * unconditional
                signal = alphas_bar[t].sqrt()
                noise = (1 - alphas_bar[t]).sqrt()
                x_0 = (signal * x - noise * v).clamp(-1, 1)
                eps = (x - signal * x_0) / noise
                x = after.sqrt() * x_0 + (1 - after).sqrt() * eps
        ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()

    return call, count


def _classifier_train(preset: dict[str, Any], net: nn.Module, ready: nn.Module):
    pixels, label = _data(preset)

    def loss() -> torch.Tensor:
        index, x = _gather(pixels, preset["classifier_batch"])
        with _autocast(preset):
            logits = ready(x)
        return functional.cross_entropy(logits.float(), label[index])

    net.train()
    return _trainer(net, loss), preset["classifier_batch"]


def _classifier_inference(preset: dict[str, Any], net: nn.Module, ready: nn.Module):
    net.eval()
    pixels, _ = _data(preset)
    count = preset["inference_batch"]
    shown = pixels.repeat(-(-count // len(pixels)), 1, 1, 1)[:count].cpu()

    def call() -> None:
        with torch.inference_mode(), _autocast(preset):
            x = shown.to(DEVICE).float() / 127.5 - 1
            ready(x.contiguous(memory_format=torch.channels_last)).float().cpu()

    return call, count


def main() -> None:
    """Builds one case of a preset and runs it on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", required=True)
    parser.add_argument("--mode", choices=("eager", "compiled"), required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument(
        "--config", type=json.loads, required=True, help="presets.for_peers, as JSON"
    )
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("NPROC", os.cpu_count())))

    def repeated() -> Case:
        case = build(args.config, args.case, args.mode)

        def call() -> None:
            for _ in range(args.steps):
                case.call()

        return Case(call, case.images * args.steps, case.parameters)

    serve(repeated)


if __name__ == "__main__":
    main()
