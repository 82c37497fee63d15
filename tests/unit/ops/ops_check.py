"""libvar's ops through PyTorch's own checks of custom ops, Meta, FakeTensor and torch.compile.

    python tests/unit/ops/ops_check.py build/release/lib/libvar_ops.so
"""

import sys
import unittest

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

libvar = torch.ops.libvar
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def norm_inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 5, 32, generator=generator)
    hidden[:, ::2, 3] *= 100
    weight = torch.randn(32, generator=generator)
    return hidden.to(dtype), weight.to(dtype), torch.tensor([3, 7])


def attention_inputs(dtype=torch.float32, capacity=40):
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 4, 9, 16, generator=generator).to(dtype)
    key = torch.randn(2, 2, capacity, 16, generator=generator).to(dtype)
    value = torch.randn(2, 2, capacity, 16, generator=generator).to(dtype)
    sink_scores = torch.rand(2, capacity, generator=generator) * 24
    visual_mask = torch.zeros(2, capacity, dtype=torch.bool)
    visual_mask[:, 4:25] = True
    return query, key, value, sink_scores, visual_mask


def redistribute_inputs(dtype=torch.float32):
    _, _, _, sink_scores, visual_mask = attention_inputs()
    generator = torch.Generator().manual_seed(3)
    probs = torch.randn(2, 4, 9, 40, generator=generator).softmax(-1).to(dtype)
    row_mask = torch.rand(2, 9, generator=generator) < 0.8
    return probs, sink_scores, visual_mask, row_mask


class OpCheck(unittest.TestCase):
    """torch.library.opcheck: schema, autograd registration, FakeTensor, AOT dispatch with symbolic shapes."""

    def test_norms(self):
        for dtype in DTYPES:
            hidden, weight, sink_dims = norm_inputs(dtype)
            torch.library.opcheck(libvar.sink_scores, (hidden, sink_dims))
            torch.library.opcheck(libvar.rms_norm_sink_scores, (hidden, weight, sink_dims, 1e-5))
            torch.library.opcheck(libvar.add_rms_norm_sink_scores, (hidden.clone(), hidden, weight, sink_dims))

    def test_rotate_and_cache(self):
        for dtype in DTYPES:
            generator = torch.Generator().manual_seed(8)
            rows = [torch.randn(2, 3, heads, 16, generator=generator).to(dtype).transpose(1, 2) for heads in (4, 2, 2)]
            angles = torch.randn(1, 3, 16, generator=generator).to(dtype)
            caches = [torch.zeros(2, 2, 9, 16, dtype=dtype), torch.zeros(2, 2, 9, 16, dtype=dtype), torch.zeros(2, 9)]
            torch.library.opcheck(libvar.rotate_and_cache, (
                *rows, torch.rand(2, 3, generator=generator), angles.cos(), angles.sin(), torch.tensor([0, 5]), *caches))

    def test_skinny_linear(self):
        for dtype in DTYPES:
            torch.manual_seed(7)
            inputs = (torch.randn(2, 3, 40).to(dtype), torch.randn(9, 40).to(dtype), torch.randn(9).to(dtype))
            torch.library.opcheck(libvar.skinny_linear, inputs)
            torch.library.opcheck(libvar.skinny_linear, inputs[:2])
            integers = torch.randint(-127, 128, (9, 40), dtype=torch.int8)
            torch.library.opcheck(libvar.skinny_linear, (inputs[0], integers, inputs[2], torch.rand(9)))

    def test_skinny_swiglu(self):
        for dtype in DTYPES:
            torch.manual_seed(8)
            rows = torch.randn(2, 3, 40).to(dtype)
            gate, up = torch.randn(2, 9, 40).to(dtype)
            gate_bias, up_bias = torch.randn(2, 9).to(dtype)
            torch.library.opcheck(libvar.skinny_swiglu, (rows, gate, up))
            torch.library.opcheck(libvar.skinny_swiglu, (rows, gate, up, gate_bias, up_bias))
            integers = torch.randint(-127, 128, (2, 9, 40), dtype=torch.int8)
            torch.library.opcheck(libvar.skinny_swiglu, (rows, *integers, gate_bias, None, *torch.rand(2, 9)))

    def test_silu_mul(self):
        for dtype in DTYPES:
            torch.manual_seed(9)
            gate, up = torch.randn(2, 3, 80).to(dtype).chunk(2, dim=-1)
            torch.library.opcheck(libvar._silu_mul, (gate, up))

    def test_greedy_tokens(self):
        for dtype in DTYPES:
            torch.library.opcheck(libvar._greedy_tokens, (torch.randn(3, 80).to(dtype),))

    def test_redistribute(self):
        for dtype in DTYPES:
            probs, sink_scores, visual_mask, row_mask = redistribute_inputs(dtype)
            torch.library.opcheck(libvar.redistribute, (probs, sink_scores, visual_mask))
            torch.library.opcheck(libvar.redistribute, (probs, sink_scores, visual_mask, row_mask), {"rho": 0.5})

    def test_redistribute_in_place(self):
        probs, sink_scores, visual_mask, row_mask = redistribute_inputs()
        torch.library.opcheck(libvar.redistribute_, (probs, sink_scores, visual_mask, row_mask), {"rho": 0.5})

    def test_attention(self):
        for dtype in DTYPES:
            inputs = attention_inputs(dtype)
            torch.library.opcheck(libvar.attention, inputs, {"scale": 0.25})
            row_mask = torch.ones(2, 9, dtype=torch.bool)
            lengths = torch.tensor([40, 21], dtype=torch.int32)
            torch.library.opcheck(libvar.attention, (*inputs, row_mask, lengths), {"scale": 0.25, "p": 0.3})

    def test_internal_ops(self):
        inputs = attention_inputs()
        rule = dict(tau=20.0, rho=0.5, p=0.6, min_visual_mass=0.1, ratio_epsilon=0.0, sources=5, targets=2, head_rule=0)
        selected = torch.zeros(2, 4, 9, dtype=torch.bool)
        class_mass = torch.zeros(2, 4, 9, 4)
        params = torch.tensor([[20.0, 0.5, 0.6, 0.1]]).repeat(2, 1)
        torch.library.opcheck(libvar._attention, (*inputs, None, None, params, selected, class_mass),
                              {"scale": 0.25, **rule})
        torch.library.opcheck(libvar._redistribute, redistribute_inputs(), rule)
        torch.library.opcheck(libvar._redistribute_, redistribute_inputs(), rule)


class Values(unittest.TestCase):
    """The ops from Python against the method in plain PyTorch, with the defaults of the schemas."""

    def test_redistribute(self):
        probs, sink_scores, visual_mask, row_mask = redistribute_inputs()
        sink = (sink_scores >= 20)[:, None, None]
        visual = visual_mask[:, None, None]
        mass = lambda keys: (probs * keys).sum(-1, keepdim=True)
        share, sinks = mass(visual & ~sink), mass(visual & sink)
        chosen = row_mask[:, None, :, None] & (share + sinks >= 0.2) & (share / (share + sinks) >= 0.8)
        moved = probs * torch.where(sink, 0.4, torch.where(visual, 1 + 0.6 * mass(sink) / share, 1.0))
        expected = torch.where(chosen, moved, probs)
        self.assertTrue(chosen.any() and not chosen.all())
        actual = libvar.redistribute(probs, sink_scores, visual_mask, row_mask)
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
        result = libvar.redistribute_(probs, sink_scores, visual_mask, row_mask)
        self.assertIs(result, probs)
        self.assertTrue(torch.equal(probs, actual))

    def test_errors(self):
        probs, sink_scores, visual_mask, _ = redistribute_inputs()
        with self.assertRaisesRegex(ValueError, r"redistribute: expected p in \[0, 1\], got 2"):
            libvar.redistribute(probs, sink_scores, visual_mask, p=2.0)
        with self.assertRaisesRegex(TypeError, "redistribute: expected visual_mask of dtype Bool, got Float"):
            libvar.redistribute(probs, sink_scores, visual_mask.float())
        with self.assertRaisesRegex(RuntimeError, "scale"):
            libvar.attention(*attention_inputs())


    def test_backward_raises(self):
        probs, sink_scores, visual_mask, row_mask = redistribute_inputs()
        probs.requires_grad_()
        query, *rest = attention_inputs()
        query.requires_grad_()
        for result in (libvar.redistribute(probs, sink_scores, visual_mask, row_mask),
                       libvar.attention(query, *rest, scale=0.25)):
            with self.assertRaisesRegex(RuntimeError, "derivative for libvar::.* is not implemented"):
                result.sum().backward()
        with torch.no_grad():
            self.assertFalse(libvar.attention(query, *rest, scale=0.25).requires_grad)


class Tracing(unittest.TestCase):
    """Meta, FakeTensor, torch.compile."""

    def test_meta(self):
        with torch.device("meta"):
            hidden = torch.empty(2, 5, 32, dtype=torch.bfloat16)
            sink_dims = torch.empty(2, dtype=torch.int64)
        phi = libvar.sink_scores(hidden, sink_dims)
        self.assertEqual((phi.shape, phi.dtype, phi.device.type), ((2, 5), torch.float32, "meta"))
        out = libvar.attention(*(t.to("meta") for t in attention_inputs(torch.float16)), scale=1.0)
        self.assertEqual((out.shape, out.dtype, out.device.type), ((2, 4, 9, 16), torch.float16, "meta"))

    def test_fake_tensors(self):
        with FakeTensorMode() as mode:
            inputs = [mode.from_tensor(t) for t in attention_inputs()]
            self.assertEqual(libvar.attention(*inputs, scale=1.0).shape, (2, 4, 9, 16))
            probs, *rest = (mode.from_tensor(t) for t in redistribute_inputs())
            self.assertIs(libvar.redistribute_(probs, *rest), probs)

    def compiled_equals_eager(self, function, *inputs):
        for dynamic in (False, True):
            torch._dynamo.reset()
            compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
            expected = function(*(t.clone() for t in inputs))
            actual = compiled(*(t.clone() for t in inputs))
            for a, e in zip(actual, expected, strict=True):
                self.assertTrue(torch.equal(a, e))

    def test_compile_attention_layer(self):
        hidden, weight, sink_dims = norm_inputs()

        def layer(hidden, delta, weight, sink_dims, query, key, value, visual_mask):
            normed, phi = libvar.add_rms_norm_sink_scores(hidden, delta, weight, sink_dims)
            out = libvar.attention(query, key, value, phi, visual_mask, scale=0.25, tau=4.0, rho=0.3)
            return normed * 2, phi, hidden + 1, out + 1

        query, key, value, _, _ = attention_inputs(capacity=5)
        visual_mask = torch.tensor([[False, True, True, False, False]]).repeat(2, 1)
        self.compiled_equals_eager(layer, hidden, torch.ones_like(hidden), weight, sink_dims, query[:, :, :3], key,
                                   value, visual_mask)

    def test_compile_redistribute(self):
        def function(probs, sink_scores, visual_mask, row_mask):
            moved = libvar.redistribute(probs, sink_scores, visual_mask, row_mask, rho=0.5)
            copy = probs * 1.0
            result = libvar.redistribute_(copy, sink_scores, visual_mask, row_mask, rho=0.5)
            return moved, copy + 0.0, result * 2.0

        self.compiled_equals_eager(function, *redistribute_inputs())

    def test_compile_changes_an_argument(self):
        def function(probs, sink_scores, visual_mask, row_mask):
            libvar.redistribute_(probs[:, 1:3], sink_scores, visual_mask, row_mask, rho=0.5)
            return (probs.sum(-1),)

        inputs = redistribute_inputs()
        eager, traced = inputs[0].clone(), inputs[0].clone()
        function(eager, *inputs[1:])
        torch._dynamo.reset()
        torch.compile(function, backend="aot_eager", fullgraph=True)(traced, *inputs[1:])
        self.assertFalse(torch.equal(eager, inputs[0]))
        self.assertTrue(torch.equal(traced, eager))


if __name__ == "__main__":
    torch.ops.load_library(sys.argv.pop(1))
    torch.set_num_threads(1)
    unittest.main(verbosity=2)
