#include "worker/models/model.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace phalanx {

// One line here and one in the table for each file of this folder.
absl::StatusOr<std::unique_ptr<Model>> CreateLlama(const ModelContext& context);

namespace {

struct Entry {
  const char* architecture;
  absl::StatusOr<std::unique_ptr<Model>> (*create)(const ModelContext& context);
};

constexpr Entry kModels[] = {
    {"llama", CreateLlama},
};

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> CreateModel(const ModelContext& context) {
  std::string supported;
  for (const Entry& entry : kModels) {
    if (context.config->architecture == entry.architecture) return entry.create(context);
    absl::StrAppend(&supported, supported.empty() ? "" : ", ", entry.architecture);
  }
  return absl::UnimplementedError(absl::StrCat("architecture '", context.config->architecture,
                                               "' is not supported; supported: ", supported));
}

}  // namespace phalanx
