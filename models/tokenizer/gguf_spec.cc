#include "models/tokenizer/gguf_spec.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm {
namespace {

std::string Key(absl::string_view name) { return absl::StrCat("tokenizer.ggml.", name); }

absl::Status ReadId(const GgufFile& file, absl::string_view name, std::optional<int32_t>& id) {
  if (!file.Has(Key(name))) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t value, file.GetInt(Key(name)));
  if (value > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Key(name), " is ", value, ", beyond any vocabulary"));
  }
  id = static_cast<int32_t>(value);
  return absl::OkStatus();
}

absl::Status ReadFlag(const GgufFile& file, absl::string_view name, std::optional<bool>& flag) {
  if (!file.Has(Key(name))) return absl::OkStatus();
  ISOTHERM_ASSIGN_OR_RETURN(flag, file.GetBool(Key(name)));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const GgufFile& file) {
  TokenizerSpec spec;
  ISOTHERM_ASSIGN_OR_RETURN(spec.architecture, file.GetString("general.architecture"));
  ISOTHERM_ASSIGN_OR_RETURN(spec.model, file.GetString(Key("model")));
  ISOTHERM_ASSIGN_OR_RETURN(spec.tokens, file.GetStrings(Key("tokens")));
  if (file.Has(Key("pre"))) {
    ISOTHERM_ASSIGN_OR_RETURN(spec.pre, file.GetString(Key("pre")));
  }
  if (file.Has(Key("scores"))) {
    ISOTHERM_ASSIGN_OR_RETURN(spec.scores, file.GetFloats(Key("scores")));
  }
  if (file.Has(Key("token_type"))) {
    ISOTHERM_ASSIGN_OR_RETURN(spec.token_types, file.GetInts(Key("token_type")));
  }
  if (file.Has(Key("merges"))) {
    ISOTHERM_ASSIGN_OR_RETURN(spec.merges, file.GetStrings(Key("merges")));
  }
  ISOTHERM_RETURN_IF_ERROR(ReadId(file, "bos_token_id", spec.bos));
  ISOTHERM_RETURN_IF_ERROR(ReadId(file, "eos_token_id", spec.eos));
  ISOTHERM_RETURN_IF_ERROR(ReadId(file, "eot_token_id", spec.eot));
  ISOTHERM_RETURN_IF_ERROR(ReadId(file, "unknown_token_id", spec.unk));
  ISOTHERM_RETURN_IF_ERROR(ReadId(file, "padding_token_id", spec.pad));
  ISOTHERM_RETURN_IF_ERROR(ReadFlag(file, "add_bos_token", spec.add_bos));
  ISOTHERM_RETURN_IF_ERROR(ReadFlag(file, "add_eos_token", spec.add_eos));
  ISOTHERM_RETURN_IF_ERROR(ReadFlag(file, "add_space_prefix", spec.add_space_prefix));
  return spec;
}

}  // namespace isotherm
