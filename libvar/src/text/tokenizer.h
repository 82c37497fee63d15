#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace libvar {

/// Text to token ids and back, equal to the published tokenizer.json. Immutable and shared between
/// threads.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  /// Ids of `text`; special tokens in it are parsed as transformers does. `add_bos` acts where the
  /// tokenizer adds one.
  virtual std::vector<std::int64_t> encode(std::string_view text, bool add_bos) const = 0;
  /// Text of `ids` with special tokens left out, as transformers' decode(skip_special_tokens=True);
  /// bytes that are no UTF-8 become U+FFFD.
  virtual std::string decode(const std::vector<std::int64_t>& ids) const = 0;
  /// How many of `ids`, from the front, have a text that no id behind them can change. The text of
  /// the first certain(ids) ids is a prefix of decode(ids), and of decode of any longer sequence.
  virtual std::size_t certain(const std::vector<std::int64_t>& ids) const = 0;
  /// Id of a special or ordinary piece.
  virtual std::optional<std::int64_t> token_id(std::string_view piece) const = 0;
  /// One past the largest id that encode can give.
  virtual std::int64_t size() const = 0;
};

/// Decodes a stream of ids; never gives half a character. All pieces together are decode of all
/// ids.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer);
  /// The text that has become certain with this id; may be empty.
  std::string push(std::int64_t id);
  /// What is left at the end.
  std::string finish();

 private:
  std::string text_up_to(std::size_t count);

  const Tokenizer& tokenizer_;
  std::vector<std::int64_t> ids_;
  std::size_t decoded_ids_ = 0, given_bytes_ = 0;
};

/// The tokenizer that a checkpoint's files describe (tokenizer.model with tokenizer_config.json,
/// added_tokens.json).
/// @throws ArchiveError  files missing or not understood
std::unique_ptr<Tokenizer> load_tokenizer(const std::map<std::string, std::string>& files);

}  // namespace libvar
