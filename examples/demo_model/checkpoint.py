"""Writes and reads the model in the layout of the published llava-hf checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer as FastTokenizer, decoders, models, normalizers, processors

from batches import MEAN, STD
from model import AUXILIARY, TEXT, VISION, DemoModel
from scenes import GRID, MODEL_SIZE, PATCH
from tokenizer import BOS_ID, EOS_ID, IMAGE_TOKEN, PAD_TOKEN, VOCAB_SIZE, Tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def model_config(tokenizer: Tokenizer) -> dict:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_seq_length": GRID * GRID,
        "image_token_index": tokenizer.image_id,
        "model_type": "llava",
        "pad_token_id": tokenizer.pad_id,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "hidden_act": "silu",
            "hidden_size": TEXT.hidden,
            "intermediate_size": TEXT.intermediate,
            "max_position_embeddings": 1024,
            "model_type": "llama",
            "num_attention_heads": TEXT.heads,
            "num_hidden_layers": TEXT.layers,
            "num_key_value_heads": TEXT.heads,
            "rms_norm_eps": TEXT.eps,
            "rope_theta": TEXT.rope_theta,
            "torch_dtype": "bfloat16",
            "vocab_size": VOCAB_SIZE,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_act": "quick_gelu",
            "hidden_size": VISION.hidden,
            "image_size": MODEL_SIZE,
            "intermediate_size": VISION.intermediate,
            "layer_norm_eps": VISION.eps,
            "model_type": "clip_vision_model",
            "num_attention_heads": VISION.heads,
            "num_hidden_layers": VISION.layers,
            "patch_size": PATCH,
            "projection_dim": VISION.hidden,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": VOCAB_SIZE,
    }


def image_config() -> dict:
    return {
        "crop_size": {"height": MODEL_SIZE, "width": MODEL_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(STD),
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": MODEL_SIZE},
    }


def token_entry(content: str) -> dict:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, dict]:
    added = {0: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>", tokenizer.image_id: IMAGE_TOKEN, tokenizer.pad_id: PAD_TOKEN}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": None,
        "added_tokens_decoder": {str(i): {**token_entry(c), "special": True} for i, c in added.items()},
        "bos_token": "<s>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 1024,
        "pad_token": PAD_TOKEN,
        "padding_side": "left",
        "processor_class": "LlavaProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
        "use_default_system_prompt": False,
    }
    special = {name: token_entry(c) for name, c in (("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", PAD_TOKEN), ("unk_token", "<unk>"))}
    return {
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
        "added_tokens.json": {IMAGE_TOKEN: tokenizer.image_id, PAD_TOKEN: tokenizer.pad_id},
    }


def fast_tokenizer(model_file: Path, tokenizer: Tokenizer) -> FastTokenizer:
    """tokenizer.json with the pieces of tokenizer.model: a merge for every way to build a piece from two others, best piece first."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_file.read_bytes())
    vocabulary = {p.piece: i for i, p in enumerate(proto.pieces)}
    merges = []
    for index, piece in enumerate(proto.pieces):
        if piece.type != 1:  # only ordinary pieces are merged
            continue
        text = piece.piece
        splits = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocabulary and text[i:] in vocabulary]
        merges += sorted(splits, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    fast = FastTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS_ID)])
    names = ("<unk>", "<s>", "</s>", IMAGE_TOKEN, PAD_TOKEN)
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    if fast.token_to_id(IMAGE_TOKEN) != tokenizer.image_id or fast.token_to_id(PAD_TOKEN) != tokenizer.pad_id:
        raise ValueError("the added tokens are not where the model expects them")
    return fast


def write_checkpoint(model: DemoModel, tokenizer_model: Path, folder: Path) -> None:
    """Writes beside the destination, then swaps: a reader never sees half a checkpoint."""
    tokenizer = Tokenizer(tokenizer_model)
    temporary = folder.with_name(folder.name + ".new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in model.checkpoint().items()}
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    files = tokenizer_files(tokenizer)
    files["config.json"] = model_config(tokenizer)
    files["preprocessor_config.json"] = image_config()
    files["processor_config.json"] = {
        "image_token": IMAGE_TOKEN, "num_additional_image_tokens": 1, "patch_size": PATCH,
        "processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default",
    }
    files["chat_template.json"] = {"chat_template": CHAT_TEMPLATE}
    files["generation_config.json"] = {"bos_token_id": BOS_ID, "do_sample": False, "eos_token_id": EOS_ID, "pad_token_id": tokenizer.pad_id}
    for name, content in files.items():
        (temporary / name).write_text(json.dumps(content, indent=2) + "\n")
    (temporary / "model.safetensors").chmod(0o644)
    shutil.copy(tokenizer_model, temporary / "tokenizer.model")
    fast_tokenizer(tokenizer_model, tokenizer).save(str(temporary / "tokenizer.json"))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[DemoModel, Tokenizer]:
    """The stored bfloat16 weights in float32."""
    model = DemoModel()
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or any(not name.startswith(AUXILIARY) for name in missing):
        raise ValueError(f"not a demo checkpoint: missing {missing}, unexpected {unexpected}")
    model.planted = True
    return model.eval(), Tokenizer(folder / "tokenizer.model")
