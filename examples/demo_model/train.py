"""Trains, exports and evaluates the demo model. See README.md.

    python train.py train    --out RUN [--steps N] [--resume]
    python train.py export   --out RUN --hf DIRECTORY
    python train.py evaluate --hf DIRECTORY [--scenes N]
    python train.py render
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F

from batches import Batch, make_batch
from checkpoint import write_checkpoint
from evaluation import ask_samples, evaluate
from model import LOOKING_LAYER, RECALLING_LAYER, DemoModel, Guide, drop_sink_gradients, hold_sink_entries, plant_units
from samples import render_samples
from scenes import COLOR_NAMES, GRID, SHAPES
from tokenizer import Tokenizer, train_tokenizer

WARMUP_STEPS = 100
LOG_EVERY = 20
SAVE_EVERY = 100
LOSS_WEIGHTS = {"answer": 1.0, "probe": 0.3, "words": 0.3, "sink": 0.3, "looks": 0.2, "recalls": 0.05, "knows": 0.2, "parks": 0.2}
TRAIN_SEED = 1_000_000  # held-out scenes use seeds far from these


def forward(model: DemoModel, batch: Batch, prefix_length: int):
    with torch.autocast("cpu", torch.bfloat16):
        visual, features, unit = model.visual_tokens(batch.pixels, batch.sink)
        x = model.embed(batch.ids, visual, prefix_length)
        pairs = {LOOKING_LAYER: batch.words, RECALLING_LAYER: batch.ends}
        guides = {layer: Guide(rows, batch.visual_sinks, batch.visual_rest, batch.text_rows) for layer, rows in pairs.items()}
        logits, found = model.decode(x, batch.positions, batch.mask, batch.rows, guides)
        probes = model.probe.shape(features), model.probe.color(features), model.probe.position(features)
    return logits.float(), [p.float() for p in probes], unit, visual, (guides, found)


def word_alignment(model: DemoModel, batch: Batch, visual: torch.Tensor, tokenizer: Tokenizer) -> torch.Tensor:
    """Pulls each visual token towards the embeddings of the words for what it shows and where it is.

    Words and patches then speak of a colour in the same directions, and the attention that finds "the red object" is learned several times sooner.
    """
    cells = torch.arange(GRID * GRID)
    half = GRID // 2
    rows, columns = (cells // GRID >= half).long(), (cells % GRID >= half).long()
    groups = (
        (SHAPES, batch.shape), (COLOR_NAMES, batch.color),
        (("top", "bottom"), rows.expand(batch.shape.shape)), (("left", "right"), columns.expand(batch.shape.shape)),
    )
    keep = ~batch.sink
    tokens = F.normalize(visual[keep], dim=-1)
    total = torch.zeros(())
    for words, labels in groups:
        ids = torch.tensor([tokenizer.word(word) for word in words])
        similarity = tokens @ F.normalize(model.language_model.model.embed_tokens.weight[ids], dim=-1).T
        wanted = labels[keep]
        wanted = torch.where(wanted < len(words), wanted, -100)  # background has no shape and no colour
        total = total + F.cross_entropy(similarity * 20.0, wanted)
    return total


def attention_guidance(batch: Batch, guides, found) -> dict[str, torch.Tensor]:
    """From a question's word to what it names, or to the sinks where nothing fits; from the end of the prompt to that word; what the word then knows; and
    how much attention is missing on the sinks."""
    looking, recalling = guides[LOOKING_LAYER].seen, guides[RECALLING_LAYER].seen
    at_word = recalling.gather(2, batch.words[:, None, 1:].expand(-1, recalling.shape[1], 1))
    return {
        "looks": -((looking * batch.focus[:, None]).sum(-1) + 1e-6).log().mean(),
        "recalls": -(at_word + 1e-6).log().mean(),
        "knows": sum(F.cross_entropy(f.float(), batch.found[:, i]) for i, f in enumerate(found)),
        "parks": sum(guide.shortfall for guide in guides.values()),
    }


def losses(model: DemoModel, batch: Batch, tokenizer: Tokenizer):
    logits, (shape, color, position), unit, visual, watched = forward(model, batch, len(tokenizer.prefix))
    result = attention_guidance(batch, *watched)
    result["answer"] = F.cross_entropy(logits, batch.targets)
    where = torch.arange(batch.sink.shape[1]).expand(batch.sink.shape)
    result["probe"] = sum(F.cross_entropy(p.flatten(0, 1), t.flatten()) for p, t in ((shape, batch.shape), (color, batch.color), (position, where)))
    result["words"] = word_alignment(model, batch, visual, tokenizer)
    # Two-sided margin: the unit must be clearly on or clearly off.
    sign = torch.where(batch.sink, 1.0, -1.0)
    weight = torch.where(batch.sink, 4.0, 1.0)
    result["sink"] = (F.softplus(4.0 - sign * unit) * weight).mean()
    return result, (logits, unit)


@torch.no_grad()
def right_answers(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
    """Per answer: every token right. Given the right tokens before it, the greedy answer is right iff this holds."""
    right = torch.ones(len(batch.kinds), dtype=torch.long)
    right.scatter_reduce_(0, batch.answers, (logits.argmax(-1) == batch.targets).long(), "amin")
    return right


def make_optimizer(model: DemoModel, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def rate_factor(step: int, steps: int, cooldown: float) -> float:
    """Warm-up, constant, then linear to zero over the last part."""
    left = (steps - step) / max(1.0, steps * cooldown)
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, left))


class ThreadChooser:
    """One thread or several? On a machine that others load, threads wait for each other and one is faster. Tries both now and then."""

    TRY_EVERY, TRY_STEPS = 240, 3

    def __init__(self, most: int):
        self.most, self.best, self.seconds = most, 1, {}

    def before(self, step: int) -> None:
        phase = step % self.TRY_EVERY // self.TRY_STEPS
        if phase == 2 and self.most > 1:
            self.best = min(self.seconds, key=self.seconds.get, default=self.most)
            self.seconds = {}
        self.now = {0: 1, 1: self.most}.get(phase, self.best)
        torch.set_num_threads(self.now)
        self.start = time.time()

    def after(self, step: int) -> None:
        if step % self.TRY_EVERY < 2 * self.TRY_STEPS:
            self.seconds[self.now] = self.seconds.get(self.now, 0.0) + time.time() - self.start


class Run:
    """The folder of a training run: tokenizer, log and the latest checkpoint."""

    def __init__(self, folder: Path, args):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.args = folder, args
        if not (folder / "tokenizer.model").exists():
            train_tokenizer(folder / "tokenizer.model")
        self.tokenizer = Tokenizer(folder / "tokenizer.model")
        torch.manual_seed(0)
        self.model = DemoModel()
        self.optimizer = make_optimizer(self.model, args.rate)
        self.step, self.seconds = 0, 0.0
        if args.resume and self.path.exists():
            self.load(self.path)

    @property
    def path(self) -> Path:
        return self.folder / "latest.pt"

    def load(self, path: Path, with_optimizers: bool = True) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.model.planted = state["planted"]
        self.step, self.seconds = state["step"], state["seconds"]
        if with_optimizers:
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(), "planted": self.model.planted, "step": self.step, "seconds": self.seconds,
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)

    def update(self, batch: Batch, rate: float):
        values, outputs = losses(self.model, batch, self.tokenizer)
        sum(LOSS_WEIGHTS[name] * value for name, value in values.items()).backward()
        drop_sink_gradients(self.model)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        hold_sink_entries(self.model)
        return {name: value.item() for name, value in values.items()}, outputs


class Meter:
    """Sums over the steps between two log lines."""

    def __init__(self):
        self.right, self.asked = defaultdict(int), defaultdict(int)
        self.losses, self.steps, self.wrong_sinks, self.start = defaultdict(float), 0, 0, time.time()

    def add(self, batch: Batch, values: dict[str, float], outputs) -> None:
        logits, unit = outputs
        for kind, right in zip(batch.kinds, right_answers(batch, logits).tolist()):
            self.right[kind] += right
            self.asked[kind] += 1
        for name, value in values.items():
            self.losses[name] += value
        self.wrong_sinks += ((unit > 0) != batch.sink).sum().item() / batch.sink.shape[0]
        self.steps += 1

    def line(self, step: int) -> str:
        kinds = " ".join(f"{k}={self.right[k] / self.asked[k]:.3f}" for k in sorted(self.asked))
        total = sum(self.right.values()) / sum(self.asked.values())
        losses = " ".join(f"{name} {value / self.steps:.3f}" for name, value in self.losses.items())
        return (f"step {step} {losses} wrong_sinks/image {self.wrong_sinks / self.steps:.4f} "
                f"right {total:.4f} {kinds} s/step {(time.time() - self.start) / self.steps:.3f}")


def command_train(args) -> None:
    run = Run(args.out, args)
    meter, started, threads = Meter(), time.time(), ThreadChooser(args.threads)
    while run.step < args.steps:
        threads.before(run.step)
        batch = make_batch(random.Random(TRAIN_SEED + run.step), run.tokenizer, args.images, args.questions)
        meter.add(batch, *run.update(batch, args.rate * rate_factor(run.step, args.steps, args.cooldown)))
        threads.after(run.step)
        run.step += 1
        if run.step % LOG_EVERY == 0:
            print(meter.line(run.step), "threads", threads.best, flush=True)
            meter = Meter()
        if run.step % SAVE_EVERY == 0 or run.step == args.steps:
            run.seconds += time.time() - started
            started = time.time()
            run.save(run.path)


def command_export(args) -> None:
    run = Run(args.out, args)
    run.load(args.out / "latest.pt", with_optimizers=False)
    plant_units(run.model)
    write_checkpoint(run.model, args.out / "tokenizer.model", args.hf)
    print(f"step {run.step}, {run.seconds / 60:.0f} minutes of training, exported to {args.hf}")


def command_evaluate(args) -> None:
    report = evaluate(args.hf, args.scenes)
    examples = Path(__file__).parent
    if (examples / "questions.jsonl").exists():
        report["samples"] = ask_samples(args.hf, examples)
    print(json.dumps(report, indent=1))


def command_render(args) -> None:
    render_samples(Path(__file__).parent, args.seed)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="the most to use")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="learn the task; the renderer's labels say which patches are sinks")
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--steps", type=int, default=3200)
    train.add_argument("--images", type=int, default=12)
    train.add_argument("--questions", type=int, default=8)
    train.add_argument("--rate", type=float, default=6e-4)
    train.add_argument("--cooldown", type=float, default=0.27)
    train.add_argument("--resume", action="store_true")
    train.set_defaults(run=command_train)
    export = commands.add_parser("export", help="plant the projector units, round to bfloat16, write the llava-hf layout")
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--hf", type=Path, required=True)
    export.set_defaults(run=command_export, resume=False, rate=0.0)
    measure = commands.add_parser("evaluate", help="held-out accuracy, sinks, selected share, agreement with transformers")
    measure.add_argument("--hf", type=Path, required=True)
    measure.add_argument("--scenes", type=int, default=2400)
    measure.set_defaults(run=command_evaluate)
    render = commands.add_parser("render", help="draw the sample images and write questions.jsonl")
    render.add_argument("--seed", type=int, default=70_000_000)
    render.set_defaults(run=command_render)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.run(args)


if __name__ == "__main__":
    main()
