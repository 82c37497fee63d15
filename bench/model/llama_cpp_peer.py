"""llama.cpp, built from a checkout of its sources, as a decoder that bench_model.py times beside libvar's in one process.

It cannot take tensors of torch: the weights are written as GGUF with the checkout's own gguf-py and mapped, and the file's name
is removed, so the process holds them twice.
"""

import ctypes
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHIM = pathlib.Path(__file__).with_suffix(".cpp")
OPTIONS = {"CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", "GGML_NATIVE": "ON", "GGML_LLAMAFILE": "ON",
           **{f"LLAMA_BUILD_{part}": "OFF" for part in ("COMMON", "TESTS", "EXAMPLES", "TOOLS", "SERVER", "APP")},
           "LLAMA_CURL": "OFF"}
GGUF_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def run(command, what):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout[-4000:]}\nbench_model: {what} failed: {' '.join(map(str, command))}")


def build(source):
    """llama_cpp_peer.so beside llama.cpp's libraries, compiled for this processor; what is there is used again."""
    source = pathlib.Path(source).resolve()
    for file in ("CMakeLists.txt", "include/llama.h", "gguf-py/gguf/__init__.py"):
        if not (source / file).is_file():
            sys.exit(f"bench_model: --llama-cpp {source}: expected a checkout of llama.cpp, found no {file}")
    folder = ROOT / "build/llama.cpp"
    print(f"llama.cpp: building {source} in {folder}", file=sys.stderr, flush=True)
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(["cmake", "-S", source, "-B", folder, *generator, *(f"-D{name}={value}" for name, value in OPTIONS.items())],
        "configuring llama.cpp")
    run(["cmake", "--build", folder, "--target", "llama", "--parallel", os.cpu_count()], "building llama.cpp")
    shim = folder / "llama_cpp_peer.so"
    run(["c++", "-std=c++20", "-O2", "-shared", "-fPIC", f"-I{source}/include", f"-I{source}/ggml/include",
         SHIM, "-o", shim, f"-L{folder}/bin", f"-Wl,-rpath,{folder}/bin", "-lllama", "-lggml", "-lggml-base"],
        "compiling its driver")
    return shim


class Library:
    """llama.cpp's code: built, loaded, and the writer of its format."""

    def __init__(self, source):
        self.functions = ctypes.CDLL(str(build(source)), mode=os.RTLD_NOW | os.RTLD_DEEPBIND)
        sys.path.insert(0, str(pathlib.Path(source).resolve() / "gguf-py"))
        import gguf
        self.gguf = gguf
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        for name, result, arguments in (
                ("peer_open", pointer, [ctypes.c_char_p, integer, integer, ctypes.c_bool]), ("peer_close", None, [pointer]),
                ("peer_prefill", ctypes.c_bool, [pointer, pointer, integer]),
                ("peer_decode", ctypes.c_bool, [pointer, integer, integer, integer]),
                ("peer_logits", pointer, [pointer]), ("peer_features", ctypes.c_char_p, [])):
            function = getattr(self.functions, name)
            function.restype, function.argtypes = result, arguments

    def features(self):
        return self.functions.peer_features().decode().strip()

    def write(self, path, shape, model, positions):
        """A decoder without a vocabulary, one tensor in memory at a time."""
        gguf = self.gguf
        arch = "qwen2" if shape.qkv_bias else "llama"
        writer = gguf.GGUFWriter(path, arch)
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(shape.vocabulary)
        writer.add_context_length(positions)
        writer.add_embedding_length(shape.hidden)
        writer.add_feed_forward_length(shape.intermediate)
        writer.add_block_count(model.config.num_hidden_layers)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(shape.rope_theta)
        writer.add_layer_norm_rms_eps(shape.norm_epsilon)
        kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
        names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
        weights = dict(model.named_parameters())
        for name, weight in weights.items():
            vector = weight.dim() == 1  # norms and biases, in float32
            writer.add_tensor_info(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.shape, None,
                                   weight.numel() * (4 if vector else weight.element_size()),
                                   gguf.GGMLQuantizationType[GGUF_TYPES[torch.float32 if vector else weight.dtype]])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, weight in weights.items():
            weight = weight.data.float() if weight.dim() == 1 else weight.data
            if arch == "llama" and ("q_proj" in name or "k_proj" in name):
                # This architecture rotates neighbours, transformers' model rows that are half a head apart.
                weight = weight.view(-1, 2, shape.head_dim // 2, shape.hidden).transpose(1, 2).reshape(weight.shape)
            writer.write_tensor_data(weight.contiguous().view(torch.uint8).numpy())
        writer.close()


class LlamaCppModel:
    """llama.cpp with a copy of the weights of a transformers model."""

    def __init__(self, library, shape, model, positions, threads):
        self.library, self.vocabulary = library, shape.vocabulary
        folder = ROOT / "build/bench"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = pathlib.Path(temporary, "model.gguf")
            library.write(path, shape, model, positions)
            self.handle = library.functions.peer_open(str(path).encode(), positions, threads, model.dtype == torch.float32)
        if not self.handle:
            raise RuntimeError(f"llama.cpp could not load {shape.name} as GGUF; what it said is above")

    def close(self):
        self.library.functions.peer_close(self.handle)

    def logits(self):
        memory = self.library.functions.peer_logits(self.handle)
        return torch.frombuffer((ctypes.c_float * self.vocabulary).from_address(memory), dtype=torch.float32).clone()


class LlamaCppDecoder:
    """llama.cpp on one prompt, as TransformersDecoder."""

    def __init__(self, llama_cpp, embeddings):
        self.llama_cpp, self.functions = llama_cpp, llama_cpp.library.functions
        self.embeddings = embeddings[0].float().contiguous()

    def close(self):
        pass

    def prefill(self):
        length = len(self.embeddings)
        if not self.functions.peer_prefill(self.llama_cpp.handle, self.embeddings.data_ptr(), length):
            raise RuntimeError(f"llama.cpp failed in the prefill of {length} tokens")
        return self.llama_cpp.logits()

    def take_prefill_of(self, other):
        """Its cache has a form of its own: it runs the prompt itself."""
        self.prefill()

    def decode(self, token, steps):
        if not self.functions.peer_decode(self.llama_cpp.handle, len(self.embeddings), token, steps):
            raise RuntimeError(f"llama.cpp failed in decoding behind {len(self.embeddings)} tokens")
        return self.llama_cpp.logits()
