"""One process of plain PyTorch: ResNet-20, bfloat16 autocast, channels-last, fused SGD, 32 images an update.

python benchmarks/contenders/torch_plain.py --data DIR --out FILE --processes 1 --global-batch-size 32 [--threads 1]
"""

import torch
import torch.nn.functional as F
from shared import Images, Settings, Stopwatch, arguments, augment, read_images
from torch.utils.data import DataLoader

from squall.model import build


def main() -> None:
    parser = arguments()
    parser.add_argument("--threads", type=int)
    given = vars(parser.parse_args())
    if threads := given.pop("threads"):
        torch.set_num_threads(threads)
    wanted = Settings(**given)
    data = Images(*read_images(wanted.data, wanted.num_images))
    loader = DataLoader(data, batch_size=wanted.batch_size, shuffle=True, collate_fn=augment)
    torch.manual_seed(0)
    model = build("resnet20", {"num_classes": 10}).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=5e-4, fused=True)
    watch = Stopwatch(wanted)

    for images, labels in loader:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        watch.updated(loss, barrier=False)


if __name__ == "__main__":
    main()
