"""Deliberate mistakes: each is built into the Python model, and the goldens must tell it apart by a wide margin.

Not listed, because rounding decides them and every run keeps clear of the thresholds: > for >=, ratio_epsilon, phi's epsilon.
The tests of the ops hold those.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Callable

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.activations import ACT2FN
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama

from . import cases, photos, runs, store
from . import model as models
from . import var
from .paths import ROOT

LEAST_TIMES_BAR = 5.0


@dataclass
class Mistake:
    """One mistake: where it is looked for, and what it changes. A change that is None leaves that step right."""

    name: str
    what: str
    where: list[str]  # "case/run"
    patch: Callable | None = None  # model -> context manager
    pixels: Callable | None = None  # (case, files, mode) -> pixel values
    features: Callable | None = None  # (model, pixels) -> features
    prompt: Callable | None = None  # Prompt -> Prompt
    params: Callable | None = None  # VarParams -> VarParams
    state: type = var.VarState


@contextmanager
def swapped(*changes):
    """Sets (object, attribute, value) for a while."""
    old = [(thing, name, getattr(thing, name)) for thing, name, _ in changes]
    for thing, name, value in changes:
        setattr(thing, name, value)
    try:
        yield
    finally:
        for thing, name, value in old:
            setattr(thing, name, value)


def modules(root, kind) -> list:
    return [m for m in root.modules() if isinstance(m, kind)]


def clip_activation(name: str):
    return lambda m: swapped(*[(x, "activation_fn", ACT2FN[name]) for x in modules(m, modeling_clip.CLIPMLP)])


def projector_activation(name: str):
    return lambda m: swapped((m.model.multi_modal_projector, "act", ACT2FN[name]))


def llama_eps(m):
    norms = modules(m, modeling_llama.LlamaRMSNorm)
    return swapped(*[(x, "variance_epsilon", 1e-6 if x.variance_epsilon > 5e-6 else 1e-5) for x in norms])


def clip_eps(m):
    return swapped(*[(x, "eps", 1e-6) for x in modules(m.model.vision_tower, torch.nn.LayerNorm)])


def rotary(change: Callable):
    return lambda m: swapped((modeling_llama, "apply_rotary_pos_emb", change))


def interleaved(q, k, cos, sin, unsqueeze_dim=1):
    """Pairs (0, 1), (2, 3), ... in place of (0, n/2), (1, n/2 + 1), ..."""
    half = cos.shape[-1] // 2
    cos, sin = (x[..., :half].repeat_interleave(2, -1).unsqueeze(unsqueeze_dim) for x in (cos, sin))

    def turned(x):
        return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)

    return q * cos + turned(q) * sin, k * cos + turned(k) * sin


def backwards(q, k, cos, sin, unsqueeze_dim=1):
    right = ORIGINAL_ROTARY
    return right(q, k, cos, -sin, unsqueeze_dim)


ORIGINAL_ROTARY = modeling_llama.apply_rotary_pos_emb


def theta(m):
    rope = m.model.language_model.rotary_emb
    dim = 2 * len(rope.inv_freq)
    return swapped((rope, "inv_freq", 1.0 / 20000.0 ** (torch.arange(0, dim, 2).float() / dim)))


def repeat_whole(hidden, count):
    """Key heads repeated as a block (0 1 0 1) in place of each one (0 0 1 1)."""
    return hidden.repeat(1, count, 1, 1)


def unscaled_clip(m):
    return swapped(*[(x, "scale", 1.0) for x in modules(m, modeling_clip.CLIPAttention)])


def llama_scale(m):
    width = m.config.text_config.hidden_size
    return swapped(*[(x, "scaling", width**-0.5) for x in modules(m, modeling_llama.LlamaAttention)])


def gate_and_up(m):
    layers = modules(m, modeling_llama.LlamaMLP)
    return swapped(*[(x, a, getattr(x, b)) for x in layers for a, b in (("gate_proj", "up_proj"), ("up_proj", "gate_proj"))])


def projector_order(m):
    """linear_2's bias after linear_1 and the other way round: what a swapped list of a square projector looks like."""
    first, second = m.model.multi_modal_projector.linear_1, m.model.multi_modal_projector.linear_2
    return swapped((first, "bias", second.bias), (second, "bias", first.bias))


def hidden_states(m, pixels):
    return m.model.vision_tower(pixels, output_hidden_states=True).hidden_states


def project(m, states) -> torch.Tensor:
    return m.model.multi_modal_projector(states).flatten(0, 1)


def layer_features(layer: int, begin: int = 1, end: int | None = None):
    return lambda m, pixels: project(m, hidden_states(m, pixels)[layer][:, begin:end])


def normed_features(m, pixels):
    return project(m, m.model.vision_tower.post_layernorm(hidden_states(m, pixels)[-2][:, 1:]))


def transposed_features(m, pixels):
    states = hidden_states(m, pixels)[-2][:, 1:]
    side = int(states.shape[1] ** 0.5)
    return project(m, states.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))


def swapped_images(m, pixels):
    return project(m, hidden_states(m, pixels.flip(0))[-2][:, 1:])


def resized(resample, colour=photos.PAD_COLOUR, flip: bool = False, reducing: bool = False):
    """The processor's steps with another filter, pad colour or channel order."""
    def pixels(case, files, mode):
        size = case["preprocessor_config"]["size"]["shortest_edge"]
        out = []
        for file in files:
            picture = Image.open(ROOT / file).convert("RGB")
            if mode == "pad":
                side = max(picture.size)
                square = Image.new("RGB", (side, side), colour)
                square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
                picture = square
            short = min(picture.size)
            new = tuple(int(size * v / short) for v in picture.size)
            picture = picture.resize(new, resample)
            left, top = (picture.width - size) // 2, (picture.height - size) // 2
            values = np.asarray(picture.crop((left, top, left + size, top + size)))
            values = values[:, :, ::-1] if flip else values
            out.append((values.astype(np.float64) / 255 - cases.CLIP_MEAN) / cases.CLIP_STD)
        return torch.from_numpy(np.stack(out).transpose(0, 3, 1, 2).astype(np.float32))
    return pixels


def other_mode(case, files, mode):
    return models.pixel_values(case, files, "crop" if mode == "pad" else "pad")


def without(position: Callable[[models.Prompt], int]):
    """The prompt without one token."""
    def change(prompt: models.Prompt) -> models.Prompt:
        at = position(prompt)
        spans = [[b - (b > at), e - (b > at)] for b, e in prompt.spans]
        return replace(prompt, ids=prompt.ids[:at] + prompt.ids[at + 1 :], spans=spans)
    return change


class PhiAfterNorm(var.VarState):
    """The magnitude in the layer's normed input, its weight included."""

    weight: dict = {}

    def store_phi(self, layer, hidden, eps):
        super().store_phi(layer, hidden, eps)
        normed = hidden[0] * torch.rsqrt(hidden[0].pow(2).mean(-1, keepdim=True) + eps) * self.weight[layer]
        self.phi[layer][-hidden.shape[1] :] = normed[:, self.sink_dims].abs().amax(-1)


class PhiFirstDimension(var.VarState):
    def store_phi(self, layer, hidden, eps):
        kept, self.sink_dims = self.sink_dims, self.sink_dims[:1]
        super().store_phi(layer, hidden, eps)
        self.sink_dims = kept


class PhiSigned(var.VarState):
    def store_phi(self, layer, hidden, eps):
        super().store_phi(layer, hidden.clamp(min=0), eps)


class PhiMeanAbs(var.VarState):
    """Divides by the root of the sum of squares, not of their mean, and so finds no sink."""

    def store_phi(self, layer, hidden, eps):
        super().store_phi(layer, hidden, eps)
        self.phi[layer][-hidden.shape[1] :] /= hidden.shape[-1] ** 0.5


class NoGeneratedSinks(var.VarState):
    def store_phi(self, layer, hidden, eps):
        super().store_phi(layer, hidden, eps)
        self.phi[layer][self.prompt_length :] = 0


class GeneratedSinks(var.VarState):
    """The reference preset with phi kept for generated tokens."""

    def store_phi(self, layer, hidden, eps):
        kept, self.params = self.params, replace(self.params, generated_sinks=True)
        super().store_phi(layer, hidden, eps)
        self.params = kept


class SinkPortion(var.VarState):
    def ratio_rule(self, probs, keys, mass, visual_mass, eligible):
        other = {**mass, "VN": torch.where(mass["VN"] > 0, mass["VS"], mass["VN"])}
        return super().ratio_rule(probs, keys, other, visual_mass, eligible)


class RatioOfAll(var.VarState):
    """r over the whole row in place of its visual part."""

    def ratio_rule(self, probs, keys, mass, visual_mass, eligible):
        return super().ratio_rule(probs, keys, mass, visual_mass, eligible) & (mass["VN"] >= self.params.rho)


class NoRuleThree(var.VarState):
    """Every text row, whether it sees a visual sink or not."""

    def eligible_rows(self, keys, first_row, rows):
        position = first_row + torch.arange(rows)
        visual = torch.zeros(len(keys["VS"]), dtype=torch.bool)
        visual[: self.prompt_length] = self.visual
        return ~visual[position]


class VisualRowsToo(var.VarState):
    def eligible_rows(self, keys, first_row, rows):
        return keys["VS"].cumsum(0)[first_row : first_row + rows] > 0


class PromptRowsOnly(var.VarState):
    def eligible_rows(self, keys, first_row, rows):
        right = super().eligible_rows(keys, first_row, rows)
        return right & (first_row + torch.arange(rows) < self.prompt_length)


class GeneratedRowsOnly(var.VarState):
    def eligible_rows(self, keys, first_row, rows):
        right = super().eligible_rows(keys, first_row, rows)
        return right & (first_row + torch.arange(rows) >= self.prompt_length)


class FirstRowMissed(var.VarState):
    """The row behind each image is left out: a mask that is off by one."""

    def eligible_rows(self, keys, first_row, rows):
        right = super().eligible_rows(keys, first_row, rows)
        for position in range(first_row, min(first_row + rows, self.prompt_length)):
            if position > 0 and self.visual[position - 1] and not self.visual[position]:
                right[position - first_row] = False
        return right


class EvenSplit(var.VarState):
    """The budget shared out evenly among the targets in place of in proportion."""

    def redistribute(self, layer, probs):
        out = super().redistribute(layer, probs)
        if not self.layer_acts(layer):
            return out
        keys = self.classes(layer)
        seen = (probs > 0) & keys["VN"]
        gained = (out - probs)[..., keys["VN"]].sum(-1, keepdim=True)
        return torch.where(seen, probs + gained / seen.sum(-1, keepdim=True).clamp(min=1), out)


def changed(**what):
    return lambda params: replace(params, **what)


def lazy_weights(m):
    PhiAfterNorm.weight = {i: layer.input_layernorm.weight for i, layer in enumerate(m.model.language_model.layers)}
    return swapped()


def table() -> list[Mistake]:
    on, off = ["mha/on", "gqa/on"], ["mha/off", "gqa/off"]
    first = lambda prompt: 0  # noqa: E731
    behind = lambda prompt: prompt.spans[0][1]  # noqa: E731
    lanczos, nearest, bilinear, bicubic = (getattr(Image, n) for n in ("LANCZOS", "NEAREST", "BILINEAR", "BICUBIC"))
    return [
        Mistake("clip_gelu_erf", "CLIP with erf GELU, not quick", off, patch=clip_activation("gelu")),
        Mistake("clip_gelu_quick", "CLIP with quick GELU, not erf", ["odd/off"], patch=clip_activation("quick_gelu")),
        Mistake("clip_gelu_tanh", "CLIP with tanh GELU, not erf", ["odd/off"], patch=clip_activation("gelu_pytorch_tanh")),
        Mistake("projector_gelu_tanh", "projector with tanh GELU, not erf", off, patch=projector_activation("gelu_pytorch_tanh")),
        Mistake("projector_gelu_quick", "projector with quick GELU", off, patch=projector_activation("quick_gelu")),
        Mistake("projector_no_gelu", "projector without activation", off, patch=projector_activation("linear")),
        Mistake("projector_order", "the projector's two biases exchanged", off, patch=projector_order),
        Mistake("clip_layer_norm_eps", "LayerNorm eps 1e-6, not 1e-5", off, patch=clip_eps),
        Mistake("rms_eps", "RMSNorm eps 1e-6 for 1e-5, or 1e-5 for 1e-6", off + ["odd/off"], patch=llama_eps),
        Mistake("clip_scale", "CLIP attention not scaled", off, patch=unscaled_clip),
        Mistake("scale", "decoder attention scaled by D, not by head_dim", off, patch=llama_scale),
        Mistake("gate_up", "gate and up exchanged", off, patch=gate_and_up),
        Mistake("vision_layer_last", "features of the last layer", off, features=layer_features(-1)),
        Mistake("vision_layer_earlier", "features one layer too early", off, features=layer_features(-3)),
        Mistake("vision_post_norm", "features behind post_layernorm", off, features=normed_features),
        Mistake("cls_kept", "CLS kept, last patch dropped", off, features=layer_features(-2, 0, -1)),
        Mistake("patch_order", "patches column by column", off, features=transposed_features),
        Mistake("image_order", "images in the other order", ["mha/two_images", "gqa/two_images"], features=swapped_images),
        Mistake("rotary_interleaved", "rotary pairs interleaved", off, patch=rotary(interleaved)),
        Mistake("rotary_backwards", "rotary angle negative", ["mha/off", "odd/off"], patch=rotary(backwards)),
        Mistake("rotary_theta", "theta 20000, not 10000", off, patch=theta),
        Mistake("kv_heads", "key and value heads repeated as a block", ["gqa/off", "odd/off"],
                patch=lambda m: swapped((modeling_llama, "repeat_kv", repeat_whole))),
        Mistake("no_bos", "BOS missing", off, prompt=without(first)),
        Mistake("segment_prefix", "no dummy prefix behind the image", off, prompt=without(behind)),
        Mistake("pad_for_crop", "pad for crop, crop for pad", off, pixels=other_mode),
        Mistake("pad_black", "padded with black", ["gqa/off"], pixels=resized(bicubic, (0, 0, 0))),
        Mistake("pad_rounded", "pad colour rounded, not truncated", ["gqa/off"], pixels=resized(bicubic, (123, 117, 104))),
        Mistake("resize_bilinear", "bilinear resize", off, pixels=resized(bilinear)),
        Mistake("resize_lanczos", "Lanczos resize", off, pixels=resized(lanczos)),
        Mistake("resize_nearest", "nearest resize", off, pixels=resized(nearest)),
        Mistake("channels", "BGR", off, pixels=resized(bicubic, flip=True)),
        Mistake("var_off", "VAR not applied", on, params=lambda params: None),
        Mistake("no_text_sources", "text sinks give no budget", on, params=changed(sources=("VS",))),
        Mistake("p_inverted", "1 - p for p", on, params=changed(p=0.4)),
        Mistake("rho_inverted", "the sinks' portion compared with rho", on, state=SinkPortion),
        Mistake("no_mass_rule", "min_visual_mass not applied", on, params=changed(min_visual_mass=0.0)),
        Mistake("ratio_of_all", "m_VN compared with rho", on, state=RatioOfAll),
        Mistake("targets_all_text", "text gets budget too", on, params=changed(targets=("VN", "TN"))),
        Mistake("even_split", "budget split evenly", on, state=EvenSplit),
        Mistake("last_layer_too", "the last layer included", on, params=changed(include_last_layer=True)),
        Mistake("last_layer_missing", "the reference preset without the last layer", ["mha/reference", "gqa/reference"],
                params=changed(include_last_layer=False)),
        Mistake("first_layer_1", "first_layer 1, not 2", on, params=changed(first_layer=1)),
        Mistake("first_layer_3", "first_layer 3, not 2", on, params=changed(first_layer=3)),
        Mistake("phi_after_norm", "phi of the normed and weighted states", ["mha/on", "odd/on"], patch=lazy_weights,
                state=PhiAfterNorm),
        Mistake("phi_first_dim", "only the first sink dimension", ["mha/on", "odd/on"], state=PhiFirstDimension),
        Mistake("phi_signed", "phi without abs", ["mha/on", "odd/on"], state=PhiSigned),
        Mistake("phi_norm", "phi over the norm, not the root mean square", on, state=PhiMeanAbs),
        Mistake("generated_no_sinks", "generated tokens never sinks", on, state=NoGeneratedSinks),
        Mistake("reference_generated_sinks", "the reference preset with generated sinks", ["mha/reference"], state=GeneratedSinks),
        Mistake("no_rule_three", "rows before the first visual sink too", ["mha/no_sink_image_first"], state=NoRuleThree),
        Mistake("visual_rows", "visual rows too", on, state=VisualRowsToo),
        Mistake("prompt_rows_only", "generated rows untouched", on, state=PromptRowsOnly),
        Mistake("generated_rows_only", "prompt rows untouched", on, state=GeneratedRowsOnly),
        Mistake("first_row_missed", "the row behind the image untouched", on, state=FirstRowMissed),
    ]


@torch.no_grad()
def difference(model, case: dict, entry: dict, item: dict, golden: torch.Tensor, mistake: Mistake | None) -> float:
    """max |difference| over max |logit| of a run with one mistake in it, on the golden tokens."""
    mistake = mistake or Mistake("", "", [])
    with (mistake.patch or (lambda m: swapped()))(model):
        prompt = models.prepare(model, case, entry["prompt"], item["images"], entry["image_mode"])
        if mistake.pixels or mistake.features:
            pixels = (mistake.pixels or models.pixel_values)(case, item["images"], entry["image_mode"])
            prompt = replace(prompt, features=(mistake.features or layer_features(-2))(model, pixels))
        prompt = mistake.prompt(prompt) if mistake.prompt else prompt
        params = mistake.params(item["var"]) if mistake.params else item["var"]
        state = models.new_state(case, prompt, params, mistake.state)
        logits = runs.used_columns(case, models.teacher_forced(model, prompt, entry["tokens"], state))
    return float((logits - golden).abs().max() / golden.abs().max())


def make() -> None:
    """Runs every mistake where it is looked for, writes mistakes.json, fails where one would pass."""
    manifest = {case["name"]: case for case in store.read_manifest()["cases"]}
    built, tensors, result, weak = {}, {}, {}, []
    nothing = Mistake("none", "no mistake at all: must stay below the bar", [f"{c}/{r}" for c in ("mha", "gqa", "odd") for r in ("off", "on")])
    for mistake in [nothing, *table()]:
        result[mistake.name] = {"what": mistake.what, "difference": {}}
        for place in mistake.where:
            name, run = place.split("/")
            if name not in built:
                built[name], tensors[name] = models.build(manifest[name]), load_file(str(ROOT / f"{name}.safetensors"))
            entry = next(e for e in manifest[name]["runs"] if e["name"] == run)
            item = next(i for i in runs.plan(name) if i["name"] == run)
            found = difference(built[name], manifest[name], entry, item, tensors[name][entry["logits"]], mistake)
            result[mistake.name]["difference"][place] = float(f"{found:.3g}")
            if (found < LEAST_TIMES_BAR * store.BAR) != (mistake is nothing):
                weak.append((mistake.name, place, found))
        print(mistake.name, result[mistake.name]["difference"], flush=True)
    (ROOT / "mistakes.json").write_text(store.dumps({"bar": store.BAR, "least": LEAST_TIMES_BAR * store.BAR, "mistakes": result}))
    assert not weak, weak
