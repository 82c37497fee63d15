#include <c10/util/StringUtil.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "libvar/error.h"
#include "text/added_tokens.h"
#include "text/tokenizers.h"
#include "text/utf8.h"

namespace libvar {
namespace {

constexpr std::string_view kSpaceMark = "\xe2\x96\x81";  // U+2581 stands for a space in pieces

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return out.append(text);
}

/// The byte that a piece "<0x0A>" stands for.
std::optional<char> byte_of(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece.back() != '>') return std::nullopt;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  if (error != std::errc() || end != piece.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

/// A sentencepiece model used as tokenizer.json of transformers describes it: the text is cut at
/// the added tokens first, and each stretch between them is encoded as a text of its own, with its
/// own leading space.
class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::map<std::string, std::string>& files) {
    const auto model = files.find("tokenizer.model");
    if (model == files.end()) {
      throw ArchiveError(
          "tokenizer.model is missing: the sentencepiece model of the tokenizer is needed");
    }
    const auto status = pieces_.LoadFromSerializedProto(model->second);
    if (!status.ok()) throw ArchiveError(c10::str("tokenizer.model: ", status.ToString()));
    for (int id = 0; id < pieces_.GetPieceSize(); ++id) texts_.push_back(pieces_.IdToPiece(id));
    added_ = AddedTokens::read(files, [this](std::string_view piece) { return piece_id(piece); });
    for (int id = 0; id < pieces_.GetPieceSize(); ++id) {
      if (pieces_.IsControl(id) || pieces_.IsUnknown(id)) added_.add({texts_[id], id});
    }
    read_bos(files);
  }

  std::vector<std::int64_t> encode(std::string_view text, bool add_bos) const override {
    std::vector<std::int64_t> ids;
    if (add_bos && bos_) ids.push_back(*bos_);
    for (const AddedTokens::Part& part : added_.split(text)) {
      if (part.id) {
        ids.push_back(*part.id);
        continue;
      }
      std::vector<int> piece_ids;
      const auto status = pieces_.Encode(part.text, &piece_ids);
      if (!status.ok())
        throw InputError(c10::str("tokenizer: the text can't be encoded: ", status.ToString()));
      ids.insert(ids.end(), piece_ids.begin(), piece_ids.end());
    }
    return ids;
  }

  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string text, bytes;
    const auto end_run =
        [&] {  // of byte pieces: characters if all of it is UTF-8, else one mark a byte
          if (is_utf8(bytes)) {
            text += bytes;
          } else {
            for (std::size_t i = 0; i < bytes.size(); ++i) text += kReplacementCharacter;
          }
          bytes.clear();
        };
    for (std::int64_t id : ids) {
      if (is_skipped(id)) continue;
      const std::string& piece = piece_text(id);
      if (const auto byte = byte_of(piece)) {
        bytes += *byte;
        continue;
      }
      end_run();
      text += replace_all(piece, kSpaceMark, " ");
    }
    end_run();
    return text.starts_with(' ') ? text.substr(1) : text;
  }

  std::size_t certain(const std::vector<std::int64_t>& ids) const override {
    std::size_t open =
        ids.size();  // start of the run of byte pieces at the end; skipped tokens don't end it
    for (std::size_t i = ids.size(); i-- > 0;) {
      if (is_skipped(ids[i])) continue;
      if (!byte_of(piece_text(ids[i]))) break;
      open = i;
    }
    return open;
  }

  std::optional<std::int64_t> token_id(std::string_view piece) const override {
    if (const AddedToken* token = added_.find(piece)) return token->id;
    return piece_id(piece);
  }

  std::int64_t size() const override { return std::max(num_pieces(), added_.end_id()); }

 private:
  std::int64_t num_pieces() const { return static_cast<std::int64_t>(texts_.size()); }

  std::optional<std::int64_t> piece_id(std::string_view piece) const {
    const int id = pieces_.PieceToId(piece);
    if (id < 0 || id >= num_pieces() || texts_[id] != piece)
      return std::nullopt;  // unknown pieces get the id of <unk>
    return id;
  }

  /// True for what decode leaves out: special tokens and ids without text.
  bool is_skipped(std::int64_t id) const {
    if (const AddedToken* token = added_.find(id)) return token->special;
    return id < 0 || id >= num_pieces();
  }

  const std::string& piece_text(std::int64_t id) const {
    const AddedToken* token = added_.find(id);
    return token ? token->content : texts_[id];
  }

  void read_bos(const std::map<std::string, std::string>& files) {
    bool add_bos = true;  // transformers' default for Llama tokenizers
    std::optional<std::int64_t> bos;
    if (pieces_.bos_id() >= 0) bos = pieces_.bos_id();
    if (const auto file = files.find("tokenizer_config.json"); file != files.end()) {
      const auto config = nlohmann::json::parse(file->second);  // AddedTokens has read it: valid
      if (const auto flag = config.find("add_bos_token");
          flag != config.end() && flag->is_boolean()) {
        add_bos = flag->get<bool>();
      }
      if (const auto token = config.find("bos_token"); token != config.end() && !token->is_null()) {
        const auto& value = token->is_object() ? token->value("content", nlohmann::json()) : *token;
        if (value.is_string()) bos = token_id(value.get<std::string>());
      }
    }
    if (add_bos && !bos) throw ArchiveError("tokenizer: it adds a BOS token, but has none");
    if (add_bos) bos_ = bos;
  }

  sentencepiece::SentencePieceProcessor pieces_;
  std::vector<std::string> texts_;  ///< of the pieces
  AddedTokens added_;
  std::optional<std::int64_t> bos_;  ///< none: encode adds no BOS
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece_tokenizer(const CheckpointTexts& files) {
  return std::make_unique<SentencePieceTokenizer>(files);
}

}  // namespace libvar
