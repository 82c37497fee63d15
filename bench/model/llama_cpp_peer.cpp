// llama.cpp behind five C functions that llama_cpp_peer.py loads: a decoder with one sequence,
// prompts given as embeddings, greedy decoding. It is compiled where it is run, against the header
// of the llama.cpp that is given there, whose structures change from version to version.

#include <dlfcn.h>
#include <llama.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

struct Peer {
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model{nullptr, llama_model_free};
  std::unique_ptr<llama_context, decltype(&llama_free)> context{nullptr, llama_free};
  std::int32_t vocab_size = 0;
};

void log_errors(ggml_log_level level, const char* text, void* /*unused*/) {
  if (level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

void forget_from(Peer& peer, llama_pos position) {
  llama_memory_seq_rm(llama_get_memory(peer.context.get()), 0, position, -1);
}

/// One sequence; the context counts positions on and gives logits of the last token.
bool decode(Peer& peer, std::int32_t tokens, llama_token* ids, float* embeddings) {
  llama_batch batch{};
  batch.n_tokens = tokens;
  batch.token = ids;
  batch.embd = embeddings;
  return llama_decode(peer.context.get(), batch) == 0;
}

}  // namespace

extern "C" {

/// In front of libc's for the libraries that are loaded behind this one (RTLD_DEEPBIND): what
/// llama.cpp allocates, its cache among it, lies in huge pages, as the tensors of the other
/// decoders do. Its weights stay in the mapped file, its default.
int posix_memalign(void** memory, std::size_t alignment, std::size_t size) noexcept {
  static const auto allocate = reinterpret_cast<int (*)(void**, std::size_t, std::size_t)>(
      dlsym(RTLD_NEXT, "posix_memalign"));
  if (size < kHugePage) return allocate(memory, alignment, size);
  const int problem = allocate(memory, std::max(alignment, kHugePage), size);
  if (problem == 0) madvise(*memory, size, MADV_HUGEPAGE);
  return problem;
}

/// float32: nothing is rounded to half, which flash attention does on a CPU. Else llama.cpp's own
/// choices: flash attention, a cache in half. Null where llama.cpp refuses; its errors are on
/// stderr.
Peer* peer_open(const char* file, std::int32_t positions, std::int32_t threads, bool float32) {
  llama_log_set(log_errors, nullptr);
  llama_backend_init();
  auto peer = std::make_unique<Peer>();
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  peer->model.reset(llama_model_load_from_file(file, model_params));
  if (!peer->model) return nullptr;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = params.n_batch = static_cast<std::uint32_t>(positions);
  params.n_threads = params.n_threads_batch = threads;
  params.flash_attn_type = float32 ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_ENABLED;
  if (float32) params.type_k = params.type_v = GGML_TYPE_F32;
  peer->context.reset(llama_init_from_model(peer->model.get(), params));
  if (!peer->context) return nullptr;
  peer->vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(peer->model.get()));
  return peer.release();
}

void peer_close(Peer* peer) {
  delete peer;
}

/// Forgets everything, then runs a prompt; embeddings: [tokens, hidden].
bool peer_prefill(Peer* peer, float* embeddings, std::int32_t tokens) {
  forget_from(*peer, 0);
  return decode(*peer, tokens, nullptr, embeddings);
}

/// Cuts the cache to a length, feeds a token and those chosen after it.
bool peer_decode(Peer* peer, std::int32_t length, std::int32_t token, std::int32_t steps) {
  forget_from(*peer, length);
  for (std::int32_t step = 0; step < steps; ++step) {
    if (!decode(*peer, 1, &token, nullptr)) return false;
    const float* logits = llama_get_logits_ith(peer->context.get(), -1);
    token = static_cast<llama_token>(std::max_element(logits, logits + peer->vocab_size) - logits);
  }
  return true;
}

/// [vocabulary] of the last token, until the next call.
const float* peer_logits(Peer* peer) {
  return llama_get_logits_ith(peer->context.get(), -1);
}

/// What llama.cpp was compiled for.
const char* peer_features() {
  return llama_print_system_info();
}

}  // extern "C"
