#pragma once

// The problems on which tests/simt runs the attention kernel.

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "reference/attention_oracle.h"

enum class Sinks { kSome, kNone, kAllKeys, kAfterRows, kOnlyText, kAllVisual };
enum class Visual { kSpan, kNone, kTwoSpans };

struct Case {
  std::string name;
  int batch = 1;
  int num_heads = 2;
  int num_kv_heads = 2;
  int num_rows = 5;
  int num_keys = 40;
  int head_dim = 64;
  Sinks sinks = Sinks::kSome;
  Visual visual = Visual::kSpan;
  libvar::RedistributionRule rule = {};
  bool has_lengths = false;  ///< lengths below the capacity, NaN past them
  bool has_row_mask = false;
  bool has_params = false;
};

/// Turns key j of every head towards the first query of the head, by another amount in each head.
inline void lay_along_queries(libvar::reference::AttentionProblem& in, int b, int j) {
  for (int h = 0; h < in.num_heads; ++h) {
    const int kv_head = h / (in.num_heads / in.num_kv_heads);
    const std::size_t key =
        ((static_cast<std::size_t>(b) * in.num_kv_heads + kv_head) * in.num_keys + j) * in.head_dim;
    for (int d = 0; d < in.head_dim; ++d) {
      const std::size_t query =
          (static_cast<std::size_t>(b) * in.num_heads + h) * in.num_rows * in.head_dim + d;
      in.key[key + d] += 0.25 * (h % 3) * in.query[query];
    }
  }
}

/// Past the length lies whatever a cache held before: NaN, large values, scores of sinks.
inline void forget_past_length(libvar::reference::AttentionProblem& in, int b, int length) {
  for (int j = length; j < in.num_keys; ++j) {
    const std::size_t token = static_cast<std::size_t>(b) * in.num_keys + j;
    in.sink_scores[token] = j % 2 == 0 ? NAN : 100.0f;
    in.visual_mask[token] = 1;
    for (int h = 0; h < in.num_kv_heads; ++h) {
      const std::size_t at =
          ((static_cast<std::size_t>(b) * in.num_kv_heads + h) * in.num_keys + j) * in.head_dim;
      std::fill_n(in.key.begin() + static_cast<std::ptrdiff_t>(at), in.head_dim,
                  j % 2 == 0 ? NAN : 1e30);
      std::fill_n(in.value.begin() + static_cast<std::ptrdiff_t>(at), in.head_dim, NAN);
    }
  }
}

/// Text, an image of about two thirds of the keys, text. BOS and a few patches are sinks: their
/// keys lie along the queries, so that the heads look at them, some more, some less.
inline libvar::reference::AttentionProblem make_problem(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  libvar::reference::AttentionProblem in;
  in.batch = c.batch;
  in.num_heads = c.num_heads;
  in.num_kv_heads = c.num_kv_heads;
  in.num_rows = c.num_rows;
  in.num_keys = c.num_keys;
  in.head_dim = c.head_dim;
  in.scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
  in.rule = c.rule;
  in.query.resize(static_cast<std::size_t>(c.batch) * c.num_heads * c.num_rows * c.head_dim);
  in.key.resize(static_cast<std::size_t>(c.batch) * c.num_kv_heads * c.num_keys * c.head_dim);
  in.value.resize(in.key.size());
  for (auto* values : {&in.query, &in.key, &in.value}) {
    for (double& x : *values) x = normal(random);
  }
  const std::size_t num_tokens = static_cast<std::size_t>(c.batch) * c.num_keys;
  in.sink_scores.assign(num_tokens, 1.0f);
  in.visual_mask.assign(num_tokens, 0);
  if (c.has_lengths) in.kv_lengths = std::vector<int>(c.batch);
  for (int b = 0; b < c.batch; ++b) {
    const int length = c.has_lengths ? std::max(1, c.num_keys - 7 * b - 3) : c.num_keys;
    if (c.has_lengths) (*in.kv_lengths)[b] = length;
    for (int j = 0; j < length; ++j) {
      const std::size_t token = static_cast<std::size_t>(b) * c.num_keys + j;
      const bool in_image = j >= length / 8 && j < length * 3 / 4;
      const bool in_second = j >= length * 7 / 8 && j < length - 2;
      in.visual_mask[token] =
          c.visual != Visual::kNone && (in_image || (c.visual == Visual::kTwoSpans && in_second));
      bool sink = false;
      switch (c.sinks) {
        case Sinks::kSome:
          sink = j == 0 || (in_image && j % 9 == 4);
          break;
        case Sinks::kNone:
          break;
        case Sinks::kAllKeys:
          sink = true;
          break;
        case Sinks::kAfterRows:
          sink = j == length - 1 && c.num_rows > 1;
          break;
        case Sinks::kOnlyText:
          sink = j == 0;
          break;
        case Sinks::kAllVisual:
          sink = j == 0 || in.visual_mask[token] != 0;
          break;
      }
      if (c.sinks == Sinks::kAfterRows) in.visual_mask[token] |= sink ? 1 : 0;
      if (sink) in.sink_scores[token] = j % 2 == 0 ? 20.0f : 37.5f;
      if (!sink && j % 5 == 3) in.sink_scores[token] = j % 2 == 0 ? NAN : 19.999998f;
      if (sink && c.num_rows > 0) lay_along_queries(in, b, j);
    }
    forget_past_length(in, b, length);
  }
  if (c.has_row_mask) {
    in.row_mask.emplace(static_cast<std::size_t>(c.batch) * c.num_rows);
    for (auto& may : *in.row_mask) may = random() % 3 != 0;
  }
  if (c.has_params) {
    in.params.emplace();
    for (int b = 0; b < c.batch; ++b) {
      const float share = static_cast<float>(b + 1) / static_cast<float>(c.batch + 1);
      for (const float x : {b % 2 == 0 ? 20.0f : 30.0f, 0.5f * share, share, 0.25f * share})
        in.params->push_back(x);
    }
  }
  return in;
}

/// The rows [first, first + count) of sequence b alone, over a cache of another capacity.
inline libvar::reference::AttentionProblem cut(const libvar::reference::AttentionProblem& in, int b,
                                               int first, int count, int capacity) {
  libvar::reference::AttentionProblem out = in;
  out.batch = 1;
  out.num_rows = count;
  out.num_keys = capacity;
  const int length = in.kv_lengths ? (*in.kv_lengths)[b] : in.num_keys;
  const int end =
      length - in.num_rows + first + count;  // what was in the cache when these rows were computed
  out.kv_lengths = std::vector<int>{end};
  out.query.clear();
  for (int h = 0; h < in.num_heads; ++h) {
    const auto at =
        ((static_cast<std::ptrdiff_t>(b) * in.num_heads + h) * in.num_rows + first) * in.head_dim;
    out.query.insert(out.query.end(), in.query.begin() + at,
                     in.query.begin() + at + std::ptrdiff_t{count} * in.head_dim);
  }
  const auto take = [&](const std::vector<double>& from) {
    std::vector<double> to(static_cast<std::size_t>(in.num_kv_heads) * capacity * in.head_dim, NAN);
    for (int h = 0; h < in.num_kv_heads; ++h) {
      const auto at =
          (static_cast<std::ptrdiff_t>(b) * in.num_kv_heads + h) * in.num_keys * in.head_dim;
      std::copy_n(from.begin() + at, std::ptrdiff_t{end} * in.head_dim,
                  to.begin() + std::ptrdiff_t{h} * capacity * in.head_dim);
    }
    return to;
  };
  out.key = take(in.key);
  out.value = take(in.value);
  out.sink_scores.assign(capacity, 1000.0f);
  out.visual_mask.assign(capacity, 1);
  std::copy_n(in.sink_scores.begin() + std::ptrdiff_t{b} * in.num_keys, end,
              out.sink_scores.begin());
  std::copy_n(in.visual_mask.begin() + std::ptrdiff_t{b} * in.num_keys, end,
              out.visual_mask.begin());
  if (in.params)
    out.params = std::vector<float>(in.params->begin() + 4 * b, in.params->begin() + 4 * b + 4);
  return out;
}
