"""A very small language model on sentences of different lengths."""

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, DistributedSampler

VOCAB, WIDTH, PAD = 40, 32, -100


def sentences(n):
    gen = torch.Generator().manual_seed(8)
    found = []
    for _ in range(n):
        length = int(torch.randint(4, 30, (1,), generator=gen))
        start, stride = torch.randint(1, VOCAB, (2,), generator=gen).tolist()
        found.append((start + stride * torch.arange(length + 1)) % VOCAB)
    return found


def collate(batch):
    inputs = pad_sequence([tokens[:-1] for tokens in batch], batch_first=True)
    labels = pad_sequence([tokens[1:] for tokens in batch], batch_first=True, padding_value=PAD)
    return inputs, labels


class TinyLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.position = nn.Embedding(32, WIDTH)
        self.block = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.embed(tokens) + self.position.weight[:length]
        return self.head(self.block(hidden, src_mask=mask, is_causal=True))


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = sentences(401)
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=10, sampler=sampler, collate_fn=collate)
    model = DDP(TinyLM())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for inputs, labels in loader:
            logits = model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch} loss {loss.item():.3f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
