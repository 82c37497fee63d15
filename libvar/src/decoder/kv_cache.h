#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "decoder/config.h"
#include "libvar/ops.h"
#include "weights.h"

namespace libvar {

/// Keys, values and sink scores of the tokens that have passed through the decoder, in buffers
/// allocated beforehand.
///
/// The sink cache holds phi of every token and layer; it is written whether redistribution is on or
/// not, so that a conversation may switch it on later.
class KvCache {
 public:
  KvCache(const DecoderConfig& config, const ComputeTarget& target, std::int64_t batch = 1);

  /// Makes room for `capacity` positions; what is stored stays. Growth of a used cache gets slack.
  void reserve(std::int64_t capacity);
  /// Memory of the buffers.
  std::int64_t bytes() const;
  /// Most memory that reserve(capacity) takes beyond bytes(), at any moment.
  std::int64_t bytes_to_reserve(std::int64_t capacity) const;
  /// Forgets every position; the buffers stay.
  void clear();

  /// `count` of its sequences from `first` on, on the same storage, with `length` positions stored.
  /// It can't hold more positions than this has room for now.
  KvCache sequences(std::int64_t first, std::int64_t count, std::int64_t length) const;

  /// Takes over the first `length` positions of another cache; there is room for them.
  void copy_from(const KvCache& other, std::int64_t length);

  std::int64_t length() const { return length_; }

  std::int64_t capacity() const { return capacity_; }

  /// Positions [begin, end) are visual tokens.
  void mark_visual(std::int64_t begin, std::int64_t end);

  /// Turns queries and keys by their positions and stores keys, values and sink scores of row i of
  /// sequence b at places[b] + i; the length stays.
  /// @param rows    see rotate_and_cache; all its sequences
  /// @param places  [B] int64 on the device
  /// @return        the turned queries [B, H, Q, Dh]
  at::Tensor store(std::int64_t layer, const RotaryInputs& rows, const at::Tensor& places);

  /// Rows that were stored behind the last position count from now on.
  void advance(std::int64_t rows);

  /// Where the buffers are, and the distances in them: a captured graph holds as long as nothing of
  /// it changes.
  std::vector<std::int64_t> layout() const;

  // Views of the first `length` positions.
  at::Tensor keys(std::int64_t layer, std::int64_t length) const;         ///< [B, Hkv, length, Dh]
  at::Tensor values(std::int64_t layer, std::int64_t length) const;       ///< [B, Hkv, length, Dh]
  at::Tensor sink_scores(std::int64_t layer, std::int64_t length) const;  ///< [B, length] float32
  at::Tensor visual_mask(std::int64_t length) const;                      ///< [B, length] bool
  at::Tensor all_sink_scores() const;  ///< [layers, B, length()] float32

 private:
  /// The capacity that reserve(capacity) makes.
  std::int64_t next_capacity(std::int64_t capacity) const;

  DecoderConfig config_;
  ComputeTarget target_;
  std::int64_t batch_;
  std::int64_t length_ = 0, capacity_ = 0;
  std::vector<at::Tensor> keys_, values_;  // per layer [B, Hkv, capacity, Dh]
  at::Tensor sink_scores_;                 // [layers, B, capacity]
  at::Tensor visual_mask_;                 // [B, capacity]
};

}  // namespace libvar
