"""A trainer in the style of the large libraries: arguments, collator, tokens of the whole step as the divisor."""

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler


@dataclass
class Args:
    learning_rate: float = 4e-3
    num_train_epochs: int = 3
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 2
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = field(default=42)


class Tagger(nn.Module):
    def __init__(self, vocab=24, width=24):
        super().__init__()
        self.embed = nn.Embedding(vocab, width, padding_idx=0)
        self.rnn = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * width, 3)

    def forward(self, input_ids, labels=None, num_items=None):
        logits = self.classifier(self.rnn(self.embed(input_ids))[0])
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
            )
            loss = loss / (num_items if num_items is not None else (labels != -100).sum())
        return {"loss": loss, "logits": logits}


class Trainer:
    def __init__(self, model, args, train_dataset, data_collator):
        self.args, self.rank, self.world = args, dist.get_rank(), dist.get_world_size()
        self.model = nn.parallel.DistributedDataParallel(model)
        self.sampler = DistributedSampler(train_dataset, seed=args.seed)
        self.loader = DataLoader(
            train_dataset, args.per_device_train_batch_size, sampler=self.sampler, collate_fn=data_collator
        )
        self.updates_per_epoch = -(-len(self.loader) // args.gradient_accumulation_steps)

    def create_optimizer_and_scheduler(self):
        total = self.updates_per_epoch * self.args.num_train_epochs
        warm = int(total * self.args.warmup_ratio)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.args.learning_rate)
        self.lr_scheduler = LambdaLR(
            self.optimizer, lambda s: (s + 1) / (warm + 1) if s < warm else max(0.0, (total - s) / (total - warm))
        )

    def get_batch_samples(self, iterator, count):
        samples = [b for _, b in zip(range(count), iterator)]
        items = torch.tensor(sum(int((b["labels"] != -100).sum()) for b in samples))
        return samples, items

    def training_step(self, inputs, items):
        loss = self.model(**inputs, num_items=items)["loss"]
        loss.backward()
        return loss.detach()

    def train(self):
        self.create_optimizer_and_scheduler()
        k = self.args.gradient_accumulation_steps
        for epoch in range(self.args.num_train_epochs):
            self.sampler.set_epoch(epoch)
            iterator = iter(self.loader)
            remaining = len(self.loader)
            while remaining > 0:
                samples, items = self.get_batch_samples(iterator, min(k, remaining))
                remaining -= len(samples)
                total = 0.0
                for j, inputs in enumerate(samples):
                    self.model.require_backward_grad_sync = j == len(samples) - 1
                    total += self.training_step(inputs, items)
                nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                self.optimizer.step()
                self.lr_scheduler.step()
                self.optimizer.zero_grad()
            if self.rank == 0:
                print(
                    {
                        "epoch": epoch + 1,
                        "loss": round(total.item(), 4),
                        "learning_rate": self.lr_scheduler.get_last_lr()[0],
                    }
                )


def dataset(n=360):
    g = torch.Generator().manual_seed(20)
    rows = []
    for _ in range(n):
        ids = torch.randint(1, 24, (int(torch.randint(3, 20, (1,), generator=g)),), generator=g)
        rows.append({"input_ids": ids, "labels": (ids + ids.roll(1)) % 3})
    return rows


def collate(rows):
    pad = nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([r["input_ids"] for r in rows], batch_first=True),
        "labels": pad([r["labels"] for r in rows], batch_first=True, padding_value=-100),
    }


if __name__ == "__main__":
    dist.init_process_group("gloo")
    args = Args()
    torch.manual_seed(args.seed)
    Trainer(Tagger(), args, dataset(), collate).train()
    dist.destroy_process_group()
