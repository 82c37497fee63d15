"""The decoders that bench_model.py times beside libvar's: Hugging Face transformers on the same weights."""

import copy

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import repeat_kv

TAU, RHO, P, MIN_VISUAL_MASS = 20.0, 0.8, 0.6, 0.2


class VarState:
    """What VAR's eager form keeps beside the cache: phi of every token and layer, and what is visual."""

    def __init__(self):
        self.phi, self.visual, self.active = {}, None, False

    def crop(self, length):
        self.phi = {layer: phi[:, :length] for layer, phi in self.phi.items()}


STATE = VarState()  # of the model that runs


def eager_var_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """arXiv:2503.03321, equations 3 and 4, on whole probability matrices: softmax in float32, rounded to the dtype, then
    every head at once."""
    keys, rows = key.shape[2], query.shape[2]
    scores = torch.matmul(query, repeat_kv(key, module.num_key_value_groups).transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probs = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    sink = STATE.phi[module.layer_idx][:, None, None, :keys] >= TAU
    visual = nn.functional.pad(STATE.visual, (0, keys - STATE.visual.shape[-1]))[:, None, None, :]
    visual_sink, visual_non_sink = (visual & sink).to(probs.dtype), (visual & ~sink).to(probs.dtype)
    on_sinks = (probs * visual_sink).sum(-1, keepdim=True, dtype=torch.float32)
    on_others = (probs * visual_non_sink).sum(-1, keepdim=True, dtype=torch.float32)
    positions = torch.arange(keys - rows, keys, device=query.device)
    is_text = ~visual[0, 0, 0, positions][None, None, :, None]
    sees_sink = (visual & sink).expand(1, 1, rows, keys).tril(keys - rows).any(-1, keepdim=True)
    on_image = on_sinks + on_others
    selected = is_text & sees_sink & (on_image >= MIN_VISUAL_MASS) & (on_others >= RHO * on_image) & (on_others > 0)
    budget = P * (probs * sink).sum(-1, keepdim=True, dtype=torch.float32)
    weight = torch.where(sink, 1 - P, 1.0) + visual_non_sink * (budget / on_others)
    probs = torch.where(selected, probs * weight.to(probs.dtype), probs)
    out = torch.matmul(probs, repeat_kv(value, module.num_key_value_groups))
    return out.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("eager_var", eager_var_attention)
# Its masks are eager attention's.
try:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    ALL_MASK_ATTENTION_FUNCTIONS.register("eager_var", eager_mask)
except ImportError:  # another version: masks are made where the model runs
    pass


def make_model(shape, layers, dtype, device, positions, seed=1):
    """A decoder of the shape with random weights of unit gain; nothing is computed in float32 on the way."""
    make_config, make = (Qwen2Config, Qwen2ForCausalLM) if shape.qkv_bias else (LlamaConfig, LlamaForCausalLM)
    config = make_config(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        max_position_embeddings=positions, rms_norm_eps=shape.norm_epsilon, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, attn_implementation="sdpa")
    with torch.device("meta"):
        model = make(config).to(dtype)
    model = model.to_empty(device=device).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)  # its tables are no weights
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(weight)
        elif name.endswith("embed_tokens.weight"):
            weight.normal_(0, 1, generator=generator)
        elif name.endswith("bias"):
            weight.normal_(0, 0.1, generator=generator)
        else:  # what a layer adds is small beside the stream, so that planted sinks stay sinks
            gain = 0.3 if "o_proj" in name or "down_proj" in name else 1.0
            weight.normal_(0, gain * weight.shape[1] ** -0.5, generator=generator)
    return model


class TransformersDecoder:
    """transformers on one prompt: a loop of forward passes with a cache of its own, with the attention that is named."""

    def __init__(self, model, attention, sink_dims, prompt):
        self.model, self.attention, self.prompt = model, attention, prompt
        self.cache, self.state, self.sequences = None, VarState(), 1
        self.state.visual = prompt.visual_mask
        self.hooks = [layer.register_forward_pre_hook(self._phi_hook(index, sink_dims), with_kwargs=True)
                      for index, layer in enumerate(model.model.layers)]

    def close(self):
        for hook in self.hooks:
            hook.remove()

    def _phi_hook(self, index, sink_dims):
        def hook(layer, args, kwargs):
            if STATE is not self.state or not self.state.active:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            mean = hidden.float().pow(2).mean(-1) + self.model.config.rms_norm_eps
            phi = hidden[..., sink_dims].float().abs().amax(-1) / mean.sqrt()
            old = self.state.phi.get(index)
            self.state.phi[index] = phi if old is None else torch.cat([old, phi], 1)

        return hook

    def _run(self, with_phi, **inputs):
        global STATE
        STATE = self.state
        self.state.active = with_phi
        self.model.config._attn_implementation = self.attention
        return self.model(past_key_values=self.cache, use_cache=True, logits_to_keep=1, **inputs).logits[:, -1]

    def prefill(self, with_phi=None):
        """[V] logits of the token behind the prompt."""
        self.state.phi = {}
        self.cache = DynamicCache(config=self.model.config)
        return self._run(self.attention == "eager_var" if with_phi is None else with_phi,
                         inputs_embeds=self.prompt.embeddings(self.model))[0]

    def take_prefill_of(self, other):
        """A copy of another's cache, which has phi: prompts of several thousand tokens take minutes on one thread."""
        self.cache = copy.deepcopy(other.cache)
        self.state.phi = dict(other.state.phi)

    def repeat(self, sequences):
        """From now on so many sequences that begin with the prompt are decoded at once."""
        self.cache.batch_repeat_interleave(sequences)
        self.sequences = sequences

    def decode(self, token, steps):
        """Feeds a token behind the prompt and those chosen after it; [V] logits of the last step, of one sequence."""
        length = len(self.prompt.ids)
        if (extra := self.cache.get_seq_length() - length) > 0:
            self.cache.crop(-extra)
        self.state.crop(length)
        ids = torch.tensor([[token]] * self.sequences, device=self.model.device)
        for _ in range(steps):
            logits = self._run(self.attention == "eager_var", input_ids=ids)
            ids = logits.argmax(-1, keepdim=True)
            ids.cpu()  # the loop looks at each token
        return logits[0]
