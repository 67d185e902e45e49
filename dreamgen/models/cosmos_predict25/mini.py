"""The mini world model: the real pipeline's own classes at a small size with random weights, saved as diffusers does.

Its clips look like noise. It exists so that a CPU and the real model use the same code path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, Cosmos2_5_PredictBasePipeline, CosmosTransformer3DModel, UniPCMultistepScheduler
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dreamgen.config.loading import configs_folder, read_yaml
from dreamgen.models.cosmos_predict25.safety import NoSafetyChecker
from dreamgen.models.cosmos_predict25.transformer_size import transformer_config
from dreamgen.models.loader_logging import quiet_loaders
from dreamgen.models.saved_config import forget_source
from dreamgen.run.files import atomic_folder

# Turns of a conversation in the format that the real text encoder was trained on; text parts only.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
)  # fmt: skip


def ensure_mini(folder: Path) -> Path:
    """Build the mini model in `folder` at the first call, and return the folder."""
    if not folder.exists():
        save_mini(folder, read_yaml(configs_folder() / "models" / "mini.yaml"))
    return folder


def save_mini(folder: Path, sizes: dict[str, Any]) -> None:
    """Build the mini pipeline and save it whole with `save_pretrained`.

    Args:
        folder: It must not exist yet.
        sizes: The shape of configs/models/mini.yaml.
    """
    save_pipeline(build_mini(sizes), folder)


def save_pipeline(pipe: Cosmos2_5_PredictBasePipeline, folder: Path, max_shard_size: str = "10GB") -> None:
    """Save a pipeline from `build_mini`, whole or not at all, so that it loads without this package.

    Args:
        pipe: The pipeline.
        folder: It must not exist yet.
        max_shard_size: Of a weights file, as in `save_pretrained`; files are hashed in parallel.
    """
    with atomic_folder(folder) as temporary, quiet_loaders():
        # `NoSafetyChecker` is part of this package; a saved model must load without it.
        pipe.register_to_config(safety_checker=(None, None))
        pipe.save_pretrained(temporary, safe_serialization=True, max_shard_size=max_shard_size)
        forget_source(temporary)


def build_mini(sizes: dict[str, Any]) -> Cosmos2_5_PredictBasePipeline:
    """Create the pipeline with random weights drawn from `sizes["seed"]`.

    Args:
        sizes: The shape of configs/models/mini.yaml. The sizes of a real model work too: what they lack is as in mini.

    Returns:
        The pipeline in torch's default dtype, on its default device.
    """
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sizes.get("seed", 0))
        text_encoder = build_text_encoder(sizes["text_encoder"], tokenizer)
        transformer = build_transformer(sizes)
        vae = AutoencoderKLWan(**sizes["vae"])
    scheduler = sizes.get("scheduler") or read_yaml(configs_folder() / "models" / "mini.yaml")["scheduler"]
    return Cosmos2_5_PredictBasePipeline(
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]  # diffusers names the factory, not what it makes
        transformer=transformer.eval(),
        vae=vae.eval(),
        scheduler=UniPCMultistepScheduler(**scheduler),
        safety_checker=NoSafetyChecker(),
    )


def build_transformer(sizes: dict[str, Any]) -> CosmosTransformer3DModel:
    """Create the transformer of a recipe with random weights."""
    return transformer_from_config(transformer_config(sizes))


def transformer_from_config(config: dict[str, Any]) -> CosmosTransformer3DModel:
    """Create a transformer with random weights from the result of `transformer_config`."""
    arguments: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    return CosmosTransformer3DModel(**arguments)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Create a tokenizer with one token for each byte and the chat template; it needs no vocabulary file from a hub."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _fast_tokenizer(tokenizer)


def word_tokenizer(texts: Iterable[str], vocab_size: int = 1200) -> PreTrainedTokenizerFast:
    """Learn byte pairs from texts; frequent words become one token each, and any other text can still be written.

    Args:
        texts: Whose words get tokens of their own.
        vocab_size: Largest number of tokens, without the special ones.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = _fast_tokenizer(tokenizer)
    # The pipeline's system turn is the same in every prompt, so an encoder learns nothing from it.
    fast.chat_template = CHAT_TEMPLATE.replace("in messages", "in messages if message['role'] != 'system'")
    return fast


def _fast_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        padding_side="right",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_text_encoder(sizes: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Create the text encoder of a recipe with random weights; its vision part is always tiny."""
    vocabulary = tokenizer.get_vocab()
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": sizes.get("vocab_size", len(tokenizer)),
            **{k: sizes[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")},
            **{k: sizes[k] for k in ("num_attention_heads", "num_key_value_heads")},
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sizes["mrope_section"]),
            },
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": sizes.get("vision_depth", 1), "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": sizes["hidden_size"], "patch_size": sizes.get("vision_patch_size", 14),
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=sizes.get("tie_word_embeddings", False),
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)
