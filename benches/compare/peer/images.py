"""torchvision's loader with the transform of ImageNet's evaluation."""

import torch


def operations(given):
    # Only here, since the other groups do without torchvision.
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    settings = given.settings
    transform = transforms.Compose([
        transforms.Resize(settings["resize"]),
        transforms.CenterCrop(settings["crop"]),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    data = datasets.ImageFolder(settings["root"], transform)
    # Workers that stay, as in training: starting them is not timed.
    loader = DataLoader(
        data, settings["batch"], num_workers=settings["workers"], persistent_workers=True
    )

    def run():
        batches = [images for images, _ in loader]
        return {"output": batches[0]}

    return [{"torchvision": run}]
