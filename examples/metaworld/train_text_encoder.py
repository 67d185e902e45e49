"""Train the text encoder of the mini model, on a CPU in about ten minutes, on nothing but sentences from a grammar.

    python examples/metaworld/train_text_encoder.py --out runs/text_encoder

The encoder has the classes of the real one, with a vocabulary of its own. From the features that the
pipeline passes on, a linear layer must read what the sentence asks for, slot by slot, and two sentences for one task
must have more similar features than sentences for different tasks. The folder gets `text_encoder` and `tokenizer` as
`save_pretrained` writes them, and `report.json`. One pair of verb and object in ten is never trained on.

Axes: B batch, L tokens, D features.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.cosmos.pipeline_cosmos2_5_predict import DEFAULT_NEGATIVE_PROMPT
from instruction_grammar import PREFIX, SLOTS, Instruction, near_miss, random_instruction, say
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.models.cosmos_predict25.mini import build_text_encoder, byte_tokenizer, word_tokenizer

SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "mrope_section": [4, 6, 6], "tie_word_embeddings": True,
}  # fmt: skip
NUM_TOKENS = 512  # the pipeline pads to this, and its transformer reads every token, padding too
TEMPERATURE = 0.1


class SlotReader(torch.nn.Module):
    """One linear layer for each slot, on the mean of the features."""

    def __init__(self, num_features: int, values: dict[str, list[str]]) -> None:
        super().__init__()
        self.index = {slot: {value: n for n, value in enumerate(names)} for slot, names in values.items()}
        self.heads = torch.nn.ModuleDict({slot: torch.nn.Linear(num_features, len(v)) for slot, v in values.items()})

    def forward(self, pooled_BD: torch.Tensor, wanted: list[Instruction]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross-entropy of the slots, and which slots are right, (B, slots)."""
        losses, right = [], []
        for slot, head in self.heads.items():
            target_B = torch.tensor([self.index[slot][getattr(one, slot)] for one in wanted], device=pooled_BD.device)
            logits = head(pooled_BD)
            losses.append(F.cross_entropy(logits, target_B))
            right.append(logits.argmax(1) == target_B)
        return torch.stack(losses).mean(), torch.stack(right, dim=1)


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = word_tokenizer([text for _, text in sentences(rng, 20_000)] + [DEFAULT_NEGATIVE_PROMPT] * 50)
    encoder = build_text_encoder({**SIZES, "vocab_size": len(tokenizer)}, tokenizer).to(args.device)
    encoder.model.visual.requires_grad_(False)
    values = {slot: sorted({getattr(one, slot) for one, _ in sentences(rng, 20_000)} | {""}) for slot in SLOTS}
    reader = SlotReader(SIZES["hidden_size"] * SIZES["num_hidden_layers"], values).to(args.device)
    train(encoder, tokenizer, reader, rng, args)
    encoder.half().save_pretrained(args.out / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(args.out / "tokenizer")

    report: dict[str, Any] = {"parameters": sum(p.numel() for p in encoder.parameters()), "vocabulary": len(tokenizer)}
    untrained_sizes = read_yaml(configs_folder() / "models" / "mini.yaml")["text_encoder"]
    untrained = build_text_encoder(untrained_sizes, byte_tokenizer()).to(args.device).eval()
    report["trained"] = measure(encoder.float().eval(), tokenizer, reader, args)
    report["random"] = measure(untrained, byte_tokenizer(), None, args)
    (args.out / "report.json").write_text(json.dumps(report, indent=1))
    print_table(report)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--num_steps", type=int, default=1200)
    parser.add_argument("--batch_size", type=int, default=48, help="tasks in a batch, with two sentences each")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", type=Path, help="JSON of task -> sentences, to measure on as well")
    return parser.parse_args()


def sentences(rng: random.Random, num: int) -> list[tuple[Instruction, str]]:
    """Draw tasks that may be trained on, one sentence each."""
    drawn = [one for one in (random_instruction(rng) for _ in range(num)) if not is_held_out(one)]
    return [(one, say(one, rng)) for one in drawn]


def is_held_out(wanted: Instruction) -> bool:
    """Whether no sentence about this verb and object is trained on."""
    return zlib.crc32(f"{wanted.verb} {wanted.thing}".encode()) % 10 == 0


def batch_of_pairs(rng: random.Random, batch_size: int) -> tuple[list[Instruction], list[str], list[str]]:
    """Draw tasks, half of them near misses of the other half, with two sentences each."""
    wanted: list[Instruction] = []
    while len(wanted) < batch_size:
        one = random_instruction(rng)
        pair = [one, near_miss(one, rng)]
        if pair[0] != pair[1] and not any(is_held_out(x) or x in wanted for x in pair):
            wanted += pair
    return wanted, [say(one, rng) for one in wanted], [say(one, rng) for one in wanted]


def token_ids(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], num_tokens: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize as the pipeline does.

    Args:
        tokenizer: With a chat template.
        texts: Prompts.
        num_tokens: Length to pad to; None for a few tokens of padding after the longest.

    Returns:
        ids_BL, and which of them are padding, BL.
    """
    whole = [str(tokenizer.apply_chat_template(_conversation(text), tokenize=False)) for text in texts]
    rows = [tokenizer.encode(text)[:NUM_TOKENS] for text in whole]
    length = num_tokens or min(max(map(len, rows)) + 8, NUM_TOKENS)
    assert tokenizer.pad_token_id is not None
    ids_BL = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    return ids_BL, torch.arange(length) >= torch.tensor([len(row) for row in rows])[:, None]


def _conversation(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def features(encoder: Qwen2_5_VLForConditionalGeneration, ids_BL: torch.Tensor) -> torch.Tensor:
    """Return what the pipeline makes of the encoder's layers, BLD: each normalized over its features."""
    states = encoder.model(input_ids=ids_BL, output_hidden_states=True, use_cache=False).hidden_states
    assert states is not None
    return torch.cat([F.layer_norm(state, state.shape[-1:]) for state in states[1:]], dim=-1)


def pooled(features_BLD: torch.Tensor, chosen_BL: torch.Tensor) -> torch.Tensor:
    """Return the mean over the chosen tokens, BD."""
    weights_BL1 = chosen_BL[..., None].to(features_BLD)
    return (features_BLD * weights_BL1).sum(1) / weights_BL1.sum(1).clamp(min=1)


def contrastive_loss(pooled_BD: torch.Tensor) -> torch.Tensor:
    """Return the loss of finding a task's second sentence among all sentences; row n belongs to row n + B / 2."""
    unit_BD = F.normalize(pooled_BD - pooled_BD.mean(0), dim=1)
    similarity_BB = unit_BD @ unit_BD.T / TEMPERATURE
    similarity_BB.fill_diagonal_(float("-inf"))
    half = len(pooled_BD) // 2
    return F.cross_entropy(similarity_BB, torch.arange(2 * half, device=pooled_BD.device).roll(half))


def train(
    encoder: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    reader: SlotReader,
    rng: random.Random,
    args: argparse.Namespace,
) -> None:
    """Train encoder and reader; every fourth step reads few sentences at the pipeline's full length."""
    parameters = [p for p in [*encoder.parameters(), *reader.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, args.num_steps, pct_start=0.08)
    start_s = time.monotonic()
    for step in range(args.num_steps):
        is_long = step % 4 == 3
        wanted, firsts, seconds = batch_of_pairs(rng, args.batch_size // 8 if is_long else args.batch_size)
        ids_BL, padding_BL = token_ids(tokenizer, firsts + seconds, NUM_TOKENS if is_long else None)
        ids_BL, padding_BL = ids_BL.to(args.device), padding_BL.to(args.device)
        features_BLD = features(encoder, ids_BL)
        loss = torch.zeros((), device=args.device)
        # The padding follows the sentence, so it can hold the whole of it, and it is most of what is passed on.
        for weight, chosen_BL in ((1.0, padding_BL), (0.3, ~padding_BL)):
            pooled_BD = pooled(features_BLD, chosen_BL)
            slot_loss, right = reader(pooled_BD, wanted * 2)
            loss = loss + weight * (slot_loss + 0.3 * contrastive_loss(pooled_BD))
            accuracy = right.float().mean() if weight == 1 else accuracy  # noqa: F821
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 < 2 or (is_long and step % 100 == 99):
            left_s = (time.monotonic() - start_s) / (step + 1) * (args.num_steps - step - 1)
            print(f"step {step} loss {loss.item():.3f} slots {accuracy:.3f} {left_s:.0f} s left", flush=True)


@torch.no_grad()
def measure(
    encoder: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    reader: SlotReader | None,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Measure on sentences that were not trained on, at the pipeline's full length, over all tokens."""
    measured: dict[str, float] = {}
    rng = random.Random(f"measure {args.seed}")
    for name, held_out in (("seen_pairs", False), ("unseen_pairs", True)):
        groups: dict[str, list[str]] = {}
        wanted: list[Instruction] = []
        while len(wanted) < 200:
            one = random_instruction(rng)
            # Two near misses of each task make finding its other sentence hard.
            for task in (one, near_miss(one, rng), near_miss(one, rng)):
                if is_held_out(task) == held_out and task not in wanted:
                    wanted.append(task)
                    groups[str(task)] = [say(task, rng), say(task, rng)]
        measured |= {f"{name}_{key}": value for key, value in retrieval(encoder, tokenizer, groups, args).items()}
        if reader is not None:
            pooled_BD = pooled_texts(encoder, tokenizer, [texts[0] for texts in groups.values()], args.device, True)
            right = reader(pooled_BD, wanted)[1].float()
            measured |= {f"{name}_slots": right.mean().item(), f"{name}_all_slots": right.min(1).values.mean().item()}
    if args.sentences:
        groups = {
            task: [PREFIX + text for text in texts] for task, texts in json.loads(args.sentences.read_text()).items()
        }
        measured |= {f"recorded_{key}": value for key, value in retrieval(encoder, tokenizer, groups, args).items()}
    return measured


def retrieval(
    encoder: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    groups: dict[str, list[str]],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Measure how often a sentence's nearest neighbor belongs to the same task, and the mean cosines.

    Args:
        encoder, tokenizer: To measure.
        groups: Task -> its sentences, two or more.
        args: With the device.
    """
    texts = [text for group in groups.values() for text in group]
    owner_B = torch.tensor([n for n, group in enumerate(groups.values()) for _ in group])
    pooled_BD = pooled_texts(encoder, tokenizer, texts, args.device).cpu()
    unit_BD = F.normalize(pooled_BD - pooled_BD.mean(0), dim=1)
    cosine_BB = unit_BD @ unit_BD.T
    same_BB = owner_B[:, None] == owner_B[None]
    itself_BB = torch.eye(len(texts), dtype=torch.bool)
    nearest_B = cosine_BB.masked_fill(itself_BB, -2).argmax(1)
    return {
        "retrieval": (owner_B[nearest_B] == owner_B).float().mean().item(),
        "cosine_same": cosine_BB[same_BB & ~itself_BB].mean().item(),
        "cosine_different": cosine_BB[~same_BB].mean().item(),
    }


def pooled_texts(
    encoder: Qwen2_5_VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    device: str,
    only_padding: bool = False,
) -> torch.Tensor:
    """Encode texts at full length, and return the mean over all tokens, or over the padding, BD."""
    means = []
    for start in range(0, len(texts), 32):
        ids_BL, padding_BL = token_ids(tokenizer, texts[start : start + 32], NUM_TOKENS)
        chosen_BL = padding_BL if only_padding else torch.ones_like(padding_BL)
        means.append(pooled(features(encoder, ids_BL.to(device)), chosen_BL.to(device)))
    return torch.cat(means)


def print_table(report: dict[str, Any]) -> None:
    """Print the metrics of the trained and of the random encoder side by side."""
    print(f"{report['parameters']:,} parameters, {report['vocabulary']} tokens")
    print("| figure | trained | random |\n|---|---|---|")
    for name, value in report["trained"].items():
        other = report["random"].get(name)
        print(f"| {name.replace('_', ' ')} | {value:.3f} | {'' if other is None else f'{other:.3f}'} |")


if __name__ == "__main__":
    main()
