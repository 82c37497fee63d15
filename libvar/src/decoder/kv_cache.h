#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "decoder/config.h"
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

  /// Stores rows behind the last position; advance() makes them count.
  /// @param key, value  [B, Hkv, Q, Dh]
  void append(std::int64_t layer, const at::Tensor& key, const at::Tensor& value);
  /// @param phi  [B, Q] float32
  void append_sink_scores(std::int64_t layer, const at::Tensor& phi);
  /// phi = 0 for rows that must never be sinks.
  void append_zero_sink_scores(std::int64_t layer, std::int64_t rows);
  void advance(std::int64_t rows);

  /// Stores one row of each sequence at a place of its own; the length stays.
  /// @param key, value  [B, Hkv, 1, Dh]
  /// @param places      [B] int64 on the device
  void put(std::int64_t layer, const at::Tensor& key, const at::Tensor& value,
           const at::Tensor& places);
  /// @param phi  [B, 1] float32
  void put_sink_scores(std::int64_t layer, const at::Tensor& phi, const at::Tensor& places);

  // Views of the first `length` positions.
  at::Tensor keys(std::int64_t layer, std::int64_t length) const;         ///< [B, Hkv, length, Dh]
  at::Tensor values(std::int64_t layer, std::int64_t length) const;       ///< [B, Hkv, length, Dh]
  at::Tensor sink_scores(std::int64_t layer, std::int64_t length) const;  ///< [B, length] float32
  at::Tensor visual_mask(std::int64_t length) const;                      ///< [B, length] bool
  at::Tensor all_sink_scores() const;  ///< [layers, B, length()] float32

 private:
  DecoderConfig config_;
  ComputeTarget target_;
  std::int64_t batch_;
  std::int64_t length_ = 0, capacity_ = 0;
  std::vector<at::Tensor> keys_, values_;  // per layer [B, Hkv, capacity, Dh]
  at::Tensor sink_scores_;                 // [layers, B, capacity]
  at::Tensor visual_mask_;                 // [B, capacity]
};

}  // namespace libvar
