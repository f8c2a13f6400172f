"""Train the demo network and write its weights (float16 safetensors).

    python training/train_demo.py --data DIR --out src/afmi/models/photo_vgg.safetensors

DIR holds train/<class>/*.jpg and val/<class>/*.jpg. The defaults are the settings of the
weights in the package. Early epochs see small pictures, which is what makes a training on a
CPU bearable: the 32 epochs behind the package's weights took 80 minutes on two busy CPU cores.
A run can be interrupted: it goes on from the checkpoint beside the output.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from photo_data import Photos, centre_crops, list_photos, normalise
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from afmi.models.photos import INPUT_SIZE, LABELS, PhotoVGG

EMA_DECAY = 0.997
WARM_UP = 0.1  # share of the steps in which the learning rate rises
SIZES = ((0.4, 64), (0.75, 96), (1.0, INPUT_SIZE))  # up to that share of the epochs: that size
PLAIN_END = 0.1  # share of the epochs, at the end, without CutMix and mixup


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--min-scale", type=float, default=0.3, help="smallest crop's area")
    parser.add_argument("--mix", type=float, default=0.2, help="share of mixed batches")
    parser.add_argument("--smoothing", type=float, default=0.05, help="label smoothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--limit", type=int, help="use only so many pictures (a dry run)")
    return parser.parse_args()


def mix(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """CutMix or mixup (a coin toss) of a batch with itself in another order."""
    order = torch.randperm(len(x), device=x.device)
    share = float(torch.distributions.Beta(0.8, 0.8).sample())
    if torch.rand(()) < 0.5:
        mixed = share * x + (1 - share) * x[order]
    else:
        h, w = x.shape[2:]
        cut_h, cut_w = round(h * (1 - share) ** 0.5), round(w * (1 - share) ** 0.5)
        top = int(torch.randint(h - cut_h + 1, ()))
        left = int(torch.randint(w - cut_w + 1, ()))
        rows, columns = slice(top, top + cut_h), slice(left, left + cut_w)
        mixed = x.clone()
        mixed[:, :, rows, columns] = x[order][:, :, rows, columns]
        share = 1 - cut_h * cut_w / (h * w)
    return mixed, share * target + (1 - share) * target[order]


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Top-1 share of the centre crops; the model is left in evaluation mode."""
    model.eval()
    hits = 0
    for x, y in zip(images.split(256), labels.split(256), strict=True):
        scores = model(normalise(x.to(device).float() / 255))
        hits += int((scores.argmax(1).cpu() == y).sum())
    return hits / len(labels)


def to_stored(model: nn.Module) -> dict[str, Tensor]:
    """The state to save: floating point values as float16."""
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for the weights of convolutions and linear layers only."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def main() -> None:
    """Train, print one line per epoch, and write the averaged weights."""
    args = arguments()
    torch.manual_seed(args.seed)
    name = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    on_gpu = device.type == "cuda"
    begun = time.perf_counter()

    train_list, val_list = (list_photos(args.data / part) for part in ("train", "val"))
    if args.limit:
        train_list, val_list = (
            [items[i] for i in torch.randperm(len(items))[: args.limit].tolist()]
            for items in (train_list, val_list)
        )
    photos = Photos.load(train_list, device)
    val_images, val_labels = centre_crops(val_list)
    print(f"{len(train_list)} pictures read in {time.perf_counter() - begun:.0f} s", flush=True)

    model = PhotoVGG().to(device, memory_format=torch.channels_last)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY), use_buffers=True)
    optimiser = torch.optim.AdamW(parameter_groups(model, args.weight_decay), lr=args.lr)
    steps = max(1, len(train_list) // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, args.lr, total_steps=args.epochs * steps, pct_start=WARM_UP
    )
    parts = {"model": model, "averaged": averaged, "optimiser": optimiser, "schedule": schedule}

    checkpoint = args.out.with_suffix(".checkpoint.pt")
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        first = saved["epoch"]
        print(f"going on after epoch {first} of {checkpoint}", flush=True)

    for epoch in range(first, args.epochs):
        torch.manual_seed(args.seed * 100_003 + epoch)
        model.train()
        size = next(size for share, size in SIZES if epoch < share * args.epochs)
        mixing = args.mix if epoch < args.epochs * (1 - PLAIN_END) else 0.0
        total = torch.zeros((), device=device)
        order = torch.randperm(len(train_list), device=device)
        for index in order[: steps * args.batch_size].split(args.batch_size):
            x, y = photos.batch(index, size, args.min_scale)
            target = F.one_hot(y, len(LABELS)).float()
            if torch.rand(()) < mixing:
                x, target = mix(x, target)
            x = x.to(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                scores = model(x)
            loss = F.cross_entropy(scores.float(), target, label_smoothing=args.smoothing)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            averaged.update_parameters(model)
            total += loss.detach()
        top1 = accuracy(averaged.module, val_images, val_labels, device)
        spent = time.perf_counter() - begun
        print(
            f"epoch {epoch + 1}/{args.epochs}  {size} px  loss {float(total) / steps:.4f}"
            f"  val {100 * top1:.2f} %  {spent:.0f} s",
            flush=True,
        )
        saved = {key: part.state_dict() for key, part in parts.items()}
        torch.save({**saved, "epoch": epoch + 1}, checkpoint)

    save_file(to_stored(averaged.module), args.out)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {args.out} ({args.out.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
