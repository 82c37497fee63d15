#!/usr/bin/env python3
"""Holds an answer of `var ask` to transformers' modules on the same checkpoint in published form, VAR as the answer says.

For checks by hand at the real widths; needs tests/golden/requirements.txt, and memory for the weights in float32.

    tests/tools/make_random_checkpoint.py qwen2-vl-7b FOLDER --layers 3
    var convert FOLDER m.pt --sink-dims 458,2570
    var ask m.pt QUESTION --image A.png --tau 1.5 --rho 0.5 --first-layer 0 --dtype fp32 --json --logits logits.pt > answer.json
    tests/tools/compare_with_transformers.py FOLDER answer.json logits.pt A.png --sink-dims 458,2570

Exits with 1 where logits differ by more than 2e-5 of the largest, or tokens, visual sinks or selected rows differ.
"""

import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "golden"))

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration  # noqa: E402
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil  # noqa: E402
from transformers.models.llama import modeling_llama  # noqa: E402
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil  # noqa: E402
from transformers.models.qwen2_vl import modeling_qwen2_vl  # noqa: E402

from goldens import family_models, store, var  # noqa: E402
from goldens.family_cases import IMAGENET  # noqa: E402


def load_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(folder: Path, prefix: str = "") -> dict[str, torch.Tensor]:
    """In float32, those whose names begin with the prefix, under the rest of their names."""
    out = {}
    for file in sorted(folder.glob("*.safetensors")):
        out |= {name.removeprefix(prefix): value.float() for name, value in load_file(file).items() if name.startswith(prefix)}
    return out


def loaded(kind, folder: Path | None, **more):
    """A module with every one of its weights from the folder, or from the state_dict in `more`."""
    out, info = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **more)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            raise ValueError(f"{kind.__name__}: {what}: {sorted(info[what])[:5]}")
    return out.eval()


class Llava:
    def __init__(self, folder: Path, _: torch.Tensor, pictures: list):
        model = loaded(LlavaForConditionalGeneration, folder)
        pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
        self.features = torch.cat(list(model.get_image_features(pixels).pooler_output))
        self.decoder, self.head, self.positions = model.model.language_model, model.lm_head, None


class VilaV1:
    """LLaVA's original layout with the tower in a folder of its own; pictures are padded."""

    def __init__(self, folder: Path, _: torch.Tensor, pictures: list):
        flat = {k: v for k, v in load_json(folder / "config.json").items() if not k.startswith("mm_") and k not in ("model_type", "torch_dtype")}
        tower = load_json(folder / "vision_tower/config.json")["vision_config"]
        config = LlavaConfig(vision_config=CLIPVisionConfig(**tower), text_config=family_models.LlamaConfig(**flat))
        values = {}
        for name, value in weights(folder).items():
            if name.startswith("model.mm_projector."):
                name = name.replace("mm_projector.0", "multi_modal_projector.linear_1").replace("mm_projector.2", "multi_modal_projector.linear_2")
            elif name.startswith("model."):
                name = name.replace("model.", "model.language_model.", 1)
            values[name] = value
        values |= {"model.vision_tower." + n: v for n, v in weights(folder / "vision_tower", "vision_model.").items()}
        model = loaded(LlavaForConditionalGeneration, None, config=config, state_dict=values)
        pixels = LlavaImageProcessorPil.from_pretrained(folder / "vision_tower", do_pad=True)(pictures, return_tensors="pt")["pixel_values"]
        self.features = torch.cat(list(model.get_image_features(pixels).pooler_output))
        self.decoder, self.head, self.positions = model.model.language_model, model.lm_head, None


class Qwen2Vl:
    def __init__(self, folder: Path, ids: torch.Tensor, pictures: list):
        model = loaded(family_models.Qwen2VLForConditionalGeneration, folder)
        batch = family_models.Qwen2VLImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
        grids = batch["image_grid_thw"]
        self.features = torch.cat(list(model.get_image_features(batch["pixel_values"], grids).pooler_output))
        is_image = (ids == model.config.image_token_id).int()
        self.positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=is_image, image_grid_thw=grids)
        self.decoder, self.head = model.model.language_model, model.lm_head


class InternVl:
    def __init__(self, folder: Path, _: torch.Tensor, pictures: list):
        published = load_json(folder / "config.json")
        vision, text = published["vision_config"], published["llm_config"]
        heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
        names = family_models.InternVl.__new__(family_models.InternVl)  # for its names and splits alone, without its tiny model
        names.native, names.case = False, {"_decoder": SimpleNamespace(heads=heads, kv_heads=kv_heads, head_dim=text["hidden_size"] // heads)}
        text = {k: v for k, v in text.items() if k not in ("architectures", "bias", "rope_scaling", "model_type")}
        vision = {k: v for k, v in vision.items() if k not in ("qkv_bias", "qk_normalization", "model_type")}
        config = family_models.InternVLConfig(
            vision_config={**vision, "attention_bias": True, "use_mean_pooling": True, "model_type": "internvl_vision"},
            text_config=family_models.LlamaConfig(**text).to_dict(), downsample_ratio=0.5, tie_word_embeddings=False)
        model = loaded(family_models.InternVLForConditionalGeneration, None, config=config, state_dict=names.in_memory(weights(folder)))
        side, mean, std = vision["image_size"], *IMAGENET
        processor = family_models.GotOcr2ImageProcessorPil(crop_to_patches=True, min_patches=1, max_patches=published["max_dynamic_patch"],
                                                      size={"height": side, "width": side}, image_mean=mean, image_std=std)
        pixels = torch.cat([processor([picture], return_tensors="pt")["pixel_values"] for picture in pictures])
        self.features = model.get_image_features(pixels, vision_feature_layer=-1, vision_feature_select_strategy="default",
                                                 return_dict=True).pooler_output.flatten(0, 1)
        self.decoder, self.head, self.positions = model.model.language_model, model.lm_head, None


class Vila:
    def __init__(self, folder: Path, _: torch.Tensor, pictures: list):
        llm = {k: v for k, v in load_json(folder / "llm/config.json").items() if k not in ("torch_dtype", "model_max_length")}
        llama = loaded(family_models.LlamaForCausalLM, None, config=family_models.LlamaConfig(**llm), state_dict=weights(folder / "llm"))
        vision = family_models.SiglipVisionConfig(**load_json(folder / "vision_tower/config.json"), vision_use_head=False)
        values = {n: v for n, v in weights(folder / "vision_tower", "vision_model.").items() if not n.startswith("head.")}
        tower = loaded(family_models.SiglipVisionModel, None, config=vision, state_dict=values)
        width, hidden = 4 * vision.hidden_size, llama.config.hidden_size
        projector = torch.nn.Sequential(torch.nn.Identity(), torch.nn.LayerNorm(width, 1e-5), torch.nn.Linear(width, hidden), torch.nn.GELU(),
                                        torch.nn.Linear(hidden, hidden))
        projector.load_state_dict(weights(folder / "mm_projector", "layers."), strict=True)
        processor = family_models.SiglipImageProcessorPil.from_pretrained(folder / "vision_tower")
        states = tower(processor(pictures, return_tensors="pt")["pixel_values"], output_hidden_states=True).hidden_states[-2]
        side = int(states.shape[1] ** 0.5)
        self.features = projector(family_models.Vila15.merged(None, states.unflatten(1, (side, side)))).flatten(0, 1)
        self.decoder, self.head, self.positions = llama.model, llama.lm_head, None


KINDS = {"llava": Llava, "qwen2_vl": Qwen2Vl, "internvl_chat": InternVl}


def kind_of(folder: Path):
    config = load_json(folder / "config.json")
    if config["model_type"] == "llava_llama":
        return VilaV1 if "mm_vision_tower" in config else Vila
    return KINDS[config["model_type"]]


def expect(args: argparse.Namespace, answer: dict, count: int) -> tuple[torch.Tensor, var.VarState]:
    """The logits that chose the answer's tokens, from one pass over the prompt and the answer, and the state of VAR."""
    prompt = answer["prompt_tokens"]
    ids = torch.tensor([prompt + answer["tokens"][: count - 1]])
    pictures = [Image.open(path).convert("RGB") for path in args.images]
    model = kind_of(args.folder)(args.folder, ids, pictures)
    visual = torch.zeros(len(prompt), dtype=torch.bool)
    for begin, end in answer["visual_spans"]:
        visual[begin:end] = True
    hidden = model.decoder.get_input_embeddings()(ids.clamp(min=0)).clone()
    hidden[0, : len(prompt)][visual] = model.features
    chosen = answer["var"]
    params = var.VarParams(**{k: chosen[k] for k in ("tau", "rho", "p", "min_visual_mass", "first_layer")}) if chosen["enabled"] else None
    var.install(model.decoder)
    modeling_llama.eager_attention_forward = modeling_qwen2_vl.eager_attention_forward = var.attention
    var.STATE = var.VarState(params, len(model.decoder.layers), args.sink_dims or [0], visual)
    positions = torch.arange(ids.shape[1])[None] if model.positions is None else model.positions
    rows = model.decoder(inputs_embeds=hidden, position_ids=positions, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
    return model.head(rows), var.STATE


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("answer", type=Path, help="what --json printed")
    parser.add_argument("logits", type=Path, help="what --logits wrote")
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--sink-dims", type=lambda text: [int(d) for d in text.split(",")], help="the archive's; needed where VAR is on")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    answer, logits = load_json(args.answer), torch.load(args.logits)
    if answer["var"]["enabled"] and not args.sink_dims:
        parser.error(f"{args.answer}: VAR is on, --sink-dims is missing")
    expected, state = expect(args, answer, len(logits))
    difference = float((expected - logits).abs().max() / expected.abs().max())
    equal = {"tokens": expected.argmax(-1).tolist()[: len(answer["tokens"])] == answer["tokens"]}
    print(f"logits {tuple(logits.shape)}: largest difference {difference:.3g} of the largest, the bar is {store.BAR:.0e}")
    if answer["var"]["enabled"]:
        equal["visual sinks"] = state.visual_sinks() == answer["var"]["visual_sinks"]
        equal["selected rows"] = [int(s.sum()) for s in state.selection()] == answer["var"]["selected_rows"]
        print(f"margins: {state.margins.dictionary()}")
    print(", ".join(f"{what}: {'equal' if value else 'DIFFERENT'}" for what, value in equal.items()))
    return 0 if difference <= store.BAR and all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
