"""torch.optim.LBFGS over the whole set, gradients accumulated in portions, one thread.

python benchmarks/contenders/torch_lbfgs.py --out FILE --samples N --portion N --iterations N --history N
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from wide import network, samples


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    for name in ("samples", "portion", "iterations", "history"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, (inputs, labels) = network(), samples(given.samples).tensors
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=given.iterations,
        max_eval=100 * given.iterations,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=given.history,
        line_search_fn="strong_wolfe",
    )
    evaluations = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for start in range(0, len(inputs), given.portion):
            part = slice(start, start + given.portion)
            loss = F.cross_entropy(model(inputs[part]), labels[part], reduction="sum") / len(inputs)
            loss.backward()
            total += loss.detach()
        state = optimizer.state[optimizer._params[0]]
        evaluations.append({"iteration": state.get("n_iter", 0), "seconds": time.perf_counter(), "loss": float(total)})
        return total

    optimizer.step(closure)
    evaluations.append({"iteration": given.iterations + 1, "seconds": time.perf_counter(), "loss": float("nan")})
    given.out.write_text(json.dumps(evaluations), encoding="utf-8")


if __name__ == "__main__":
    main()
