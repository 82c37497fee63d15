"""Deliberate mistakes in the towers, projectors, positions and prompts of family_models.py: each must move the logits far beyond the bar.

Those that every family shares with LLaVA (the decoder's arithmetic, VAR's rules, CLIP) are in mistakes.py.
"""

import json
import math
from dataclasses import replace
from functools import partial

import torch
from safetensors.torch import load_file
from transformers.activations import ACT2FN
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.modeling_internvl import InternVLVisionLayer, InternVLVisionMLP
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl, modeling_qwen2_vl
from transformers.models.siglip.modeling_siglip import SiglipMLP

from . import family_cases, family_models, families, store, var
from .family_models import Pixels, marked
from .mistakes import LEAST_TIMES_BAR, PhiFirstDimension, VisualRowsToo, changed, llama_eps, modules, repeat_whole, swapped


def method(name: str, change):
    """`change(reference, right method, *arguments)` in place of one of the reference's methods."""
    return lambda r: swapped((r, name, partial(change, r, getattr(r, name))))


def attributes(find, **values):
    """Other values for attributes of the modules that find(reference) gives."""
    return lambda r: swapped(*[(m, name, value) for m in find(r) for name, value in values.items()])


def tower_norms(r):
    return modules(r.tower, torch.nn.LayerNorm)


def activation(kind, attribute: str, name: str):
    return attributes(lambda r: modules(r.tower, kind), **{attribute: ACT2FN[name]})


def zeros(find):
    """Parameters that are forgotten."""
    return lambda r: swapped(*[(p, "data", torch.zeros_like(p)) for p in find(r)])


def text_change(old: str, new: str):
    return method("text", lambda r, right, question, images: right(question, images).replace(old, new))


def other_levels(mean, std):
    """The pictures normalised with other means."""
    def change(r, right, pictures, options):
        key = next(k for k in r.files if k.endswith("preprocessor_config.json"))
        own = r.files[key]
        with swapped((r, "files", {**r.files, key: {**own, "image_mean": mean, "image_std": std}})):
            return right(pictures, options)
    return method("pixels", change)


def images_reversed(r, right, pixels):
    counts = [r.visual_tokens(pixels, i) for i in range(len(pixels.parts))]
    return torch.cat(list(reversed(right(pixels).split(counts))))


# Qwen2-VL


def half_away(height, width, factor=28, min_pixels=0, max_pixels=0):
    with swapped((image_processing_pil_qwen2_vl, "round", lambda v: math.floor(v + 0.5))):
        return RIGHT_RESIZE(height, width, factor, min_pixels, max_pixels)


RIGHT_RESIZE = image_processing_pil_qwen2_vl.smart_resize
image_processing_pil_qwen2_vl.round = round  # so that it can be swapped


def swapped_sides(height, width, factor=28, min_pixels=0, max_pixels=0):
    return tuple(reversed(RIGHT_RESIZE(height, width, factor, min_pixels, max_pixels)))


def smart_resize(change):
    return lambda r: swapped((image_processing_pil_qwen2_vl, "smart_resize", change))


def patches(change):
    """Another order of the patch rows of each image; rotary positions stay."""
    def pixels(r, right, pictures, options):
        out = right(pictures, options)
        rows = [change(v, *grid[1:].tolist()) for v, grid in zip(out.values.split(out.parts), out.grids)]
        return Pixels(torch.cat(rows), out.parts, out.grids)
    return method("pixels", pixels)


def row_major(rows, height, width):
    """(gh, gw, 2, 2) -> (gh, 2, gw, 2)."""
    return rows.reshape(height // 2, width // 2, 2, 2, -1).transpose(1, 2).flatten(0, 3)


def frames_first(rows, height, width):
    """Columns T, C, P, P for C, T, P, P."""
    return rows.reshape(len(rows), 3, 2, 14, 14).transpose(1, 2).flatten(1)


def joined_attention(r):
    """Patches of all images see each other."""
    def forward(self, hidden, cu_seqlens, *rest, **named):
        return RIGHT_ATTENTION(self, hidden, torch.tensor([0, len(hidden)]), *rest, **named)
    return swapped((modeling_qwen2_vl.VisionAttention, "forward", forward))


RIGHT_ATTENTION = modeling_qwen2_vl.VisionAttention.forward


def axes_swapped(r):
    rotary = r.tower.rotary_pos_emb
    right = rotary.recomposition_frequencies
    return swapped((rotary, "recomposition_frequencies", lambda freq: right(freq.flip(1))))


def no_vision_rotary(r):
    return swapped((modeling_qwen2_vl, "apply_rotary_pos_emb_vision", lambda q, k, cos, sin: (q, k)))


def vision_frequencies(r):
    rotary = r.tower.rotary_pos_emb
    return swapped((rotary, "inv_freq", rotary.inv_freq * 0.5))


def sections(change):
    return lambda r: swapped((r.llama.rotary_emb, "mrope_section", change(list(r.llama.rotary_emb.mrope_section))))


def interleaved_sections(r):
    """Frequencies t, h, w, t, h, w, ... in place of a stretch for each."""
    def compose(freq):
        out = torch.stack([freq[i % 3, ..., i] for i in range(freq.shape[-1])], -1)
        return torch.cat((out, out), -1)
    return swapped((r.llama.rotary_emb, "recomposition_frequencies", compose))


def plain_positions(r, right, ids, pixels):
    return torch.arange(len(ids)).expand(3, 1, -1)


def rows_and_columns(r, right, ids, pixels):
    return right(ids, pixels)[[0, 2, 1]]


def window_positions(r, right, ids, pixels):
    """What follows an image goes on behind its rows, not behind the larger side."""
    out, x = right(ids, pixels).clone(), torch.tensor(ids)
    ends = [i + 1 for i in range(len(ids) - 1) if x[i] == r.image and x[i + 1] != r.image]
    for end in ends:
        out[..., end:] -= int(out[0, 0, end] - out[1, 0, end - 1]) - 1
    return out


def qwen() -> list[tuple]:
    both, ones = ["qwen_flat/off", "qwen_tied/off"], ["qwen_flat/off"]
    blocks = lambda r: modules(r.tower, modeling_qwen2_vl.VisionMlp)  # noqa: E731
    return [
        ("qwen_resize_half_away", "sides rounded half away from zero", ["qwen_flat/two_off"], smart_resize(half_away)),
        ("qwen_sides_swapped", "height for width in smart resize", both, smart_resize(swapped_sides)),
        ("qwen_min_pixels", "min_pixels ignored", ["qwen_flat/two_images"], smart_resize(lambda h, w, factor, min_pixels, max_pixels: RIGHT_RESIZE(
            h, w, factor, 784, max_pixels))),
        ("qwen_max_pixels", "max_pixels ignored", ["qwen_flat/options"], smart_resize(lambda h, w, factor, min_pixels, max_pixels: RIGHT_RESIZE(
            h, w, factor, min_pixels, 1 << 30))),
        ("qwen_means", "ImageNet's means for CLIP's", both, other_levels(*family_cases.IMAGENET)),
        ("qwen_patch_order", "patches row by row, not four that merge together", both, patches(row_major)),
        ("qwen_frames_first", "columns of a patch frame by frame", both, patches(frames_first)),
        ("qwen_joined_attention", "images see each other in the tower", ["qwen_flat/two_off", "qwen_tied/two_off"], joined_attention),
        ("qwen_axes", "rotary axes of the tower exchanged", both, axes_swapped),
        ("qwen_no_vision_rotary", "no rotary positions in the tower", both, no_vision_rotary),
        ("qwen_vision_frequencies", "half the frequencies in the tower", both, vision_frequencies),
        ("qwen_gelu_erf", "tower with erf GELU, not quick", both, attributes(blocks, act=ACT2FN["gelu"])),
        ("qwen_gelu_tanh", "tower with tanh GELU, not quick", both, attributes(blocks, act=ACT2FN["gelu_pytorch_tanh"])),
        ("qwen_merger_gelu", "merger with tanh GELU, not erf", both, lambda r: swapped((r.tower.merger.mlp[1], "approximate", "tanh"))),
        ("qwen_layer_norm_eps", "LayerNorm eps 1e-5, not 1e-6", both, attributes(tower_norms, eps=1e-5)),
        ("qwen_merger_eps", "eps of the merger's norm alone", both, lambda r: swapped((r.tower.merger.ln_q, "eps", 1e-5))),
        ("qwen_vision_bias", "bias of the tower's qkv forgotten", both, zeros(lambda r: [b.attn.qkv.bias for b in r.tower.blocks])),
        ("qwen_bias", "bias of q, k and v forgotten", both, zeros(lambda r: [p.bias for a in r.llama.layers for p in (
            a.self_attn.q_proj, a.self_attn.k_proj, a.self_attn.v_proj)])),
        ("qwen_rms_eps", "RMSNorm eps 1e-5, not 1e-6", both, lambda r: swapped(*[(m, "variance_epsilon", 1e-5) for m in modules(
            r.llama, modeling_qwen2_vl.Qwen2VLRMSNorm)])),
        ("qwen_kv_heads", "key heads repeated as a block", ones, lambda r: swapped((var.modeling_llama, "repeat_kv", repeat_whole))),
        ("qwen_sections", "the stretches of row and column exchanged with that of time", both, sections(lambda s: [s[1], s[0], s[2]])),
        ("qwen_interleaved", "frequencies of the three axes interleaved", both, interleaved_sections),
        ("qwen_plain_positions", "positions count on through images", both, method("positions", plain_positions)),
        ("qwen_rows_columns", "rows and columns of positions exchanged", both, method("positions", rows_and_columns)),
        ("qwen_window_positions", "positions behind an image from its rows", both, method("positions", window_positions)),
        ("qwen_decode_offset", "generated tokens at their index", both, method("after", lambda r, right, positions: positions.shape[-1])),
        ("qwen_image_order", "images in the other order", ["qwen_flat/two_off"], method("features", images_reversed)),
        ("qwen_no_system", "no system turn", both, text_change("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "")),
        ("qwen_newline", "newline behind the image", both, text_change("<|vision_end|>", "<|vision_end|>\n")),
        ("qwen_var_off", "VAR not applied", ["qwen_flat/on", "qwen_tied/on"], None, lambda params: None),
        ("qwen_first_dimension", "only the first sink dimension", ["qwen_tied/on"], None, None, PhiFirstDimension),
        ("qwen_visual_rows", "visual rows too", ["qwen_flat/on", "qwen_tied/on"], None, None, VisualRowsToo),
    ]


# InternVL2


def wqkv(change):
    """Another reading of the rows of wqkv."""
    def patch(r):
        layers = [(layer.self_attn, i) for i, layer in enumerate(r.llama.layers)]
        weights = family_models.rounded_weights(r.case)
        parts = [(a, change(r, weights[f"language_model.model.layers.{i}.attention.wqkv.weight"])) for a, i in layers]
        return swapped(*[(getattr(a, f"{p}_proj").weight, "data", rows) for a, split in parts for p, rows in split.items()])
    return patch


def thirds(r, value):
    """q, k and v behind one another."""
    d = r.case["_decoder"]
    sizes = [d.heads * d.head_dim, d.kv_heads * d.head_dim, d.kv_heads * d.head_dim]
    return dict(zip("qkv", value.split(sizes)))


def keys_first(r, value):
    """Slots of a group: key, value, queries."""
    d = r.case["_decoder"]
    slots = value.reshape(d.kv_heads, -1, d.head_dim, value.shape[1])
    return {p: rows.reshape(-1, value.shape[1]) for p, rows in (("q", slots[:, 2:]), ("k", slots[:, 0]), ("v", slots[:, 1]))}


def vit_parts(order: str):
    def patch(r):
        a = [layer.attention for layer in r.tower.encoder.layer]
        changes = [(getattr(m, f"{old}_proj"), getattr(m, f"{new}_proj")) for m in a for old, new in zip("qkv", order)]
        return swapped(*[(to, what, getattr(source, what)) for to, source in changes for what in ("weight", "bias")])
    return patch


def tiles(change):
    """Tiles of each picture in another order, or other ones."""
    def pixels(r, right, pictures, options):
        out = right(pictures, options)
        parts = [change(p) for p in out.values.split(out.parts)]
        return Pixels(torch.cat(parts), [len(p) for p in parts])
    return method("pixels", pixels)


def tiles_by_column(r, right, pictures, options):
    """Tiles column by column: those of the transposed grid."""
    found = []
    for picture in pictures:
        out = right([picture], options).values
        columns = max((c for c in range(1, len(out)) if (len(out) - 1) % c == 0), key=lambda c: -abs(c / ((len(out) - 1) // c) - picture.width / picture.height),
                      default=1)
        grid = out[:-1].reshape(-1, columns, *out.shape[1:]) if len(out) > 1 else None
        found.append(out if grid is None else torch.cat([grid.transpose(0, 1).flatten(0, 1), out[-1:]]))
    return Pixels(torch.cat(found), [len(f) for f in found])


def more_tiles(r, right, pictures, options):
    return right(pictures, {**options, "max_tiles": options["max_tiles"] + 1})


def shuffle_v1(self, x, scale_factor=0.5):
    return RIGHT_SHUFFLE(self, x, scale_factor).transpose(1, 2).contiguous()


def shuffle_channels(self, x, scale_factor=0.5):
    """Channels of the four patches column by column."""
    return RIGHT_SHUFFLE(self, x.transpose(1, 2).contiguous(), scale_factor).transpose(1, 2).contiguous()


def shuffle(change):
    return lambda r: swapped((r.model.model, "pixel_shuffle", partial(change, r.model.model)))


RIGHT_SHUFFLE = family_models.InternVLForConditionalGeneration(family_models.InternVLConfig(
    vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": [28, 28], "patch_size": [14, 14]},
    text_config=family_models.LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8).to_dict())
).model.pixel_shuffle.__func__


def internvl_theta(r):
    dim = 2 * len(r.llama.rotary_emb.inv_freq)
    return swapped((r.llama.rotary_emb, "inv_freq", 1.0 / 10000.0 ** (torch.arange(0, dim, 2).float() / dim)))


def internvl() -> list[tuple]:
    both = ["internvl_small/off", "internvl_large/off", "internvl_native/off"]
    published, two = both[:2], ["internvl_small/two_off", "internvl_large/two_off"]
    layers = lambda r: modules(r.tower, InternVLVisionLayer)  # noqa: E731
    return [
        ("internvl_wqkv_thirds", "wqkv as thirds", published, wqkv(thirds)),
        ("internvl_wqkv_keys_first", "key and value before the queries", published, wqkv(keys_first)),
        ("internvl_qkv_order", "tower's qkv as k, q, v", both, vit_parts("kqv")),
        ("internvl_layer_scale", "no layer scale", both, lambda r: swapped(*[(p, "data", torch.ones_like(p)) for m in layers(r) for p in (
            m.lambda_1, m.lambda_2)])),
        ("internvl_layer_scales_swapped", "ls1 for ls2", both, lambda r: swapped(*[(a, "data", b.data) for m in layers(r) for a, b in (
            (m.lambda_1, m.lambda_2), (m.lambda_2, m.lambda_1))])),
        ("internvl_gelu_tanh", "tower with tanh GELU, not erf", published, activation(InternVLVisionMLP, "activation_fn", "gelu_pytorch_tanh")),
        ("internvl_gelu_quick", "tower with quick GELU, not erf", both, activation(InternVLVisionMLP, "activation_fn", "quick_gelu")),
        ("internvl_projector_gelu", "projector with tanh GELU", both, lambda r: swapped((r.projector, "act", ACT2FN["gelu_pytorch_tanh"]))),
        ("internvl_layer_norm_eps", "tower's eps 1e-5, not 1e-6", both, attributes(tower_norms, eps=1e-5)),
        ("internvl_projector_eps", "projector's eps 1e-6, not 1e-5", published, lambda r: swapped((r.projector.layer_norm, "eps", 1e-6))),
        ("internvl_rms_eps", "RMSNorm eps 1e-6, not 1e-5", both, lambda r: llama_eps(r.llama)),
        ("internvl_theta", "theta 1e4, not 1e6", both, internvl_theta),
        ("internvl_last_layer", "features one layer too early", both, attributes(lambda r: [r], layer=-2)),
        ("internvl_patch_bias", "bias of the patch embedding forgotten", both, zeros(lambda r: [r.tower.embeddings.patch_embeddings.projection.bias])),
        ("internvl_shuffle_v1", "pixel shuffle v1: the grid transposed", both, shuffle(shuffle_v1)),
        ("internvl_shuffle_channels", "the four patches of a token column by column", both, shuffle(shuffle_channels)),
        ("internvl_thumbnail_first", "thumbnail before the tiles", both, tiles(lambda p: p.roll(1, 0))),
        ("internvl_no_thumbnail", "no thumbnail", both, tiles(lambda p: p[:-1] if len(p) > 1 else p)),
        ("internvl_tile_order", "tiles backwards", both, tiles(lambda p: torch.cat([p[:-1].flip(0), p[-1:]]))),
        ("internvl_tiles_by_column", "tiles column by column", published, method("pixels", tiles_by_column)),
        ("internvl_max_tiles", "one tile more than asked for", ["internvl_large/options"], method("pixels", more_tiles)),
        ("internvl_means", "CLIP's means for ImageNet's", both, other_levels(family_cases.CLIP_MEAN, family_cases.CLIP_STD)),
        ("internvl_image_order", "images in the other order", two, method("features", images_reversed)),
        ("internvl_no_bos", "BOS missing", both, attributes(lambda r: [r], first=[])),
        ("internvl_newline", "newline behind the end of a turn", both, text_change("<|im_end|><|im_start|>", "<|im_end|>\n<|im_start|>")),
        ("internvl_comma", "full-width comma in the system sentence", both, text_change("InternVL, ", "InternVL，")),
        ("internvl_kv_heads", "key heads repeated as a block", both[:1], lambda r: swapped((var.modeling_llama, "repeat_kv", repeat_whole))),
        ("internvl_var_off", "VAR not applied", ["internvl_small/on", "internvl_large/on", "internvl_native/on"], None, lambda params: None),
        ("internvl_last_layer_too", "VAR in the last layer", ["internvl_small/on", "internvl_large/on"], None, changed(include_last_layer=True)),
        ("internvl_visual_rows", "visual rows too", ["internvl_small/on", "internvl_large/on"], None, None, VisualRowsToo),
    ]


# VILA


def merge(change):
    return method("merged", lambda r, right, x: change(right, x))


def padded_in_front(right, x):
    side = x.shape[1] % 2
    return right(torch.nn.functional.pad(x, (0, 0, side, 0, side, 0)))


def edge_repeated(right, x):
    side = x.shape[1] % 2
    x = torch.cat([x, x[:, -side:]], 1) if side else x
    return right(torch.cat([x, x[:, :, -side:]], 2) if side else x)


def by_row(right, x):
    out = right(x)
    half = int(out.shape[1] ** 0.5)
    return out.unflatten(1, (half, half)).transpose(1, 2).flatten(1, 2)


def channels_by_column(right, x):
    """The four patches of a token column by column."""
    out = right(x.transpose(1, 2))
    half = int(out.shape[1] ** 0.5)
    return out.unflatten(1, (half, half)).transpose(1, 2).flatten(1, 2)


def normed_states(r, right, pixels):
    return r.tower.post_layernorm(right(pixels))


def first_dropped(r, right, pixels):
    """As if there were a class token: the first patch dropped, the last one twice."""
    states = right(pixels)
    return torch.cat([states[:, 1:], states[:, -1:]], 1)


def shortest_edge(r, right, pictures, options):
    """The aspect kept, the middle cut out."""
    cut = []
    for p in pictures:
        side = min(p.size)
        left, top = (p.width - side) // 2, (p.height - side) // 2
        cut.append(p.crop((left, top, left + side, top + side)))
    return right(cut, options)


def unscaled_rope(r):
    return swapped((r.llama.rotary_emb, "inv_freq", r.llama.rotary_emb.inv_freq * 3))


def rope_ratio(r):
    return swapped((r.llama.rotary_emb, "inv_freq", r.llama.rotary_emb.inv_freq * 3 / 2.5))


def projector_part(index: int, attribute: str, value):
    return lambda r: swapped((r.projector[index], attribute, value))


def vila() -> list[tuple]:
    both, odd, llama3 = ["vila15_llama2/off", "vila15_llama3/off"], ["vila15_llama2/off"], ["vila15_llama3/off"]
    first, first_two = ["vila1_inside/off", "vila1_folder/off"], ["vila1_inside/two_off", "vila1_folder/two_off"]
    return [
        ("vila_merge_by_row", "merged tokens row by row", both, merge(by_row)),
        ("vila_merge_channels", "the four patches of a token column by column", both, merge(channels_by_column)),
        ("vila_padded_in_front", "zeros above and left", odd, merge(padded_in_front)),
        ("vila_edge_repeated", "the last row and column in place of zeros", odd, merge(edge_repeated)),
        ("vila_last_layer", "features of the last layer", both, attributes(lambda r: [r], layer=-1)),
        ("vila_earlier_layer", "features one layer too early", both + first, attributes(lambda r: [r], layer=-3)),
        ("vila_post_norm", "features behind post_layernorm", both + first, method("states", normed_states)),
        ("vila_first_dropped", "the first patch dropped", both, method("states", first_dropped)),
        ("vila_gelu_erf", "SigLIP with erf GELU, not tanh", both, activation(SiglipMLP, "activation_fn", "gelu")),
        ("vila_gelu_quick", "SigLIP with quick GELU, not tanh", both, activation(SiglipMLP, "activation_fn", "quick_gelu")),
        ("vila_projector_gelu", "projector with tanh GELU, not erf", both, projector_part(3, "approximate", "tanh")),
        ("vila1_projector_gelu", "projector with tanh GELU, not erf", first_two, projector_part(1, "approximate", "tanh")),
        ("vila_layer_norm_eps", "SigLIP's eps 1e-5, not 1e-6", both, attributes(tower_norms, eps=1e-5)),
        ("vila1_layer_norm_eps", "CLIP's eps 1e-6, not 1e-5", first, attributes(tower_norms, eps=1e-6)),
        ("vila_projector_eps", "projector's eps 1e-6, not 1e-5", ["vila15_llama3/off"], projector_part(1, "eps", 1e-6)),
        ("vila_rms_eps", "RMSNorm eps 1e-6, not 1e-5", both + first, lambda r: llama_eps(r.llama)),
        ("vila_patch_bias", "bias of the patch embedding forgotten", both, zeros(lambda r: [r.tower.embeddings.patch_embedding.bias])),
        ("vila_aspect_kept", "the middle of the picture in place of all of it", both, method("pixels", shortest_edge)),
        ("vila_means", "CLIP's means", both, other_levels(family_cases.CLIP_MEAN, family_cases.CLIP_STD)),
        ("vila_rope_unscaled", "positions not stretched", odd, unscaled_rope),
        ("vila_rope_ratio", "positions stretched by 2.5, not by its ceiling", odd, rope_ratio),
        ("vila_no_bos", "BOS missing", both + first, attributes(lambda r: [r], first=[])),
        ("vila_one_newline", "one newline behind a header", llama3, text_change("<|end_header_id|>\n\n", "<|end_header_id|>\n")),
        ("vila_no_system", "no system turn", llama3, method("text", lambda r, right, q, n: "<|start_header_id|>user" + right(q, n).split(
            "<|start_header_id|>user", 1)[1])),
        ("vila1_no_system", "no system text", first, method("text", lambda r, right, q, n: marked(q, n, "<image>\n").join(("USER: ", " ASSISTANT:")))),
        ("vila_image_order", "images in the other order", ["vila15_llama2/two_off", "vila1_inside/two_off"], method("features", images_reversed)),
        ("vila_var_off", "VAR not applied", ["vila15_llama2/on", "vila15_llama3/on", "vila1_inside/on", "vila1_folder/on"], None, lambda params: None),
        ("vila_first_dimension", "only the first sink dimension", ["vila15_llama2/on", "vila15_llama3/on"], None, None, PhiFirstDimension),
    ]


@torch.no_grad()
def difference(reference, entry: dict, golden: torch.Tensor, patch, params, state) -> float:
    """max |difference| over max |logit| of a run with one mistake in it, on the golden tokens."""
    with (patch or (lambda r: swapped()))(reference):
        prompt = reference.prepare(entry["question"], entry["images"], entry["options"])
        own = params(entry["params"]) if params else entry["params"]
        made = family_models.new_state(reference, prompt, own, state or var.VarState)
        logits = family_models.teacher_forced(reference, prompt, entry["tokens"], made)
    return float((families.stored_rows(logits) - golden).abs().max() / golden.abs().max())


def read_params(entry: dict):
    if not entry["var"]["enabled"]:
        return None
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["var"].items() if k != "enabled"}
    return replace(var.VarParams(), **values)


def make() -> None:
    """Runs every mistake where it is looked for, writes families/mistakes.json, fails where one would pass."""
    manifest = {c["name"]: c for c in json.loads((families.FOLDER / "manifest.json").read_text(encoding="utf-8"))["cases"]}
    tensors = load_file(str(families.FOLDER / "families.safetensors"))
    built, result, weak = {}, {}, []
    for case in family_cases.all_cases():
        if case["dtype"] == "float32":
            built[case["name"]] = family_models.build({**case, "overrides": manifest[case["name"]]["overrides"]})
    nothing = ("none", "no mistake at all: must stay below the bar", [f"{c}/{r}" for c in built for r in ("off", "on")], None)
    for name, what, where, patch, *rest in [nothing, *qwen(), *internvl(), *vila()]:
        params, state = (*rest, None, None)[:2]
        result[name] = {"what": what, "difference": {}}
        for place in where:
            case, run = place.split("/")
            entry = next(dict(e) for e in manifest[case]["runs"] if e["name"] == run)
            entry["params"] = read_params(entry)
            found = difference(built[case], entry, tensors[entry["logits"]], patch, params, state)
            result[name]["difference"][place] = float(f"{found:.3g}")
            if (found < LEAST_TIMES_BAR * store.BAR) != (name == "none"):
                weak.append((name, place, found))
        print(name, result[name]["difference"], flush=True)
    body = {"bar": store.BAR, "least": LEAST_TIMES_BAR * store.BAR, "mistakes": result}
    (families.FOLDER / "mistakes.json").write_text(store.dumps(body))
    assert not weak, weak
