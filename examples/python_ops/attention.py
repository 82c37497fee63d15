"""libvar's ops from Python: the attention of one layer with and without redistribution.

    python examples/python_ops/attention.py build/release/lib/libvar_ops.so [cuda]
"""

import sys

import torch


def main() -> None:
    torch.ops.load_library(sys.argv[1])
    device = sys.argv[2] if len(sys.argv) > 2 else "cpu"

    # A prompt of 1 + 4 text tokens, an image of 24 tokens and a question of 7, as a decoder layer sees it: the tokens'
    # hidden states, from which come queries, keys and values. Dimension 3 is this made-up model's sink dimension.
    torch.manual_seed(0)
    heads, num_tokens, head_dim, hidden_size = 8, 36, 16, 512
    is_visual = torch.zeros(1, num_tokens, dtype=torch.bool)
    is_visual[:, 5:29] = True
    hidden = torch.randn(1, num_tokens, hidden_size)
    for massive in (0, 11, 20):  # the first token and two background patches
        hidden[:, massive, 3] = 600.0
    query, key, value = (torch.randn(1, heads, num_tokens, head_dim) for _ in range(3))
    query[..., 0], key[..., 0] = 4.0, 0.0
    key[:, :, [0, 11, 20], 0] = 2.0  # heads park attention on them
    hidden, query, key, value, is_visual = (t.to(device) for t in (hidden, query, key, value, is_visual))

    # The layer's norm gives the sink scores in the same read.
    weight = torch.ones(hidden_size, device=device)
    sink_dims = torch.tensor([3], device=device)
    _, sink_scores = torch.ops.libvar.rms_norm_sink_scores(hidden, weight, sink_dims)
    print("sink tokens:", (sink_scores[0] >= 20).nonzero().flatten().tolist())

    # On scores and values: one pass, no matrix of probabilities.
    inputs = (query, key, value, sink_scores, is_visual)
    settings = {"scale": head_dim**-0.5, "rho": 0.5, "min_visual_mass": 0.2}
    plain = torch.ops.libvar.attention(*inputs, **settings, p=0.0)
    moved = torch.ops.libvar.attention(*inputs, **settings, p=0.6)

    # The same on probabilities, for analyses. The op knows no positions: row_mask says that text rows after the image
    # may be selected.
    scores = query @ key.transpose(-1, -2) * settings["scale"]
    hidden_keys = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).triu(1)
    probs = scores.masked_fill(hidden_keys, float("-inf")).softmax(-1)
    row_mask = ~is_visual & (torch.arange(num_tokens, device=device) >= 29)
    redistributed = torch.ops.libvar.redistribute(probs, sink_scores, is_visual, row_mask, rho=0.5, min_visual_mass=0.2)

    selected = (redistributed != probs).any(-1)
    sinks = sink_scores[0] >= 20
    print(f"rows changed: {int(selected.sum())} of {selected.numel()}")
    for name, alpha in (("before", probs), ("after", redistributed)):
        rows = alpha[selected]
        print(f"{name}: attention of these rows on sinks {rows[:, sinks].sum(-1).mean():.3f}, "
              f"on the rest of the image {rows[:, is_visual[0] & ~sinks].sum(-1).mean():.3f}")
    print(f"the output moved by up to {(moved - plain).abs().max():.3f}; "
          f"both ways agree within {(moved - redistributed @ value).abs().max():.1e}")


if __name__ == "__main__":
    main()
