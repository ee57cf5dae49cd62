#include "worker/models/model.h"

#include "base/architectures.h"

namespace phalanx {

#define PHX_DECLARE(name, Which) \
  absl::StatusOr<std::unique_ptr<Model>> Create##Which(const ModelContext& context);
PHX_ARCHITECTURES(PHX_DECLARE)
#undef PHX_DECLARE

absl::StatusOr<std::unique_ptr<Model>> CreateModel(const ModelContext& context) {
#define PHX_CREATE(name, Which) \
  if (context.config->architecture == name) return Create##Which(context);
  PHX_ARCHITECTURES(PHX_CREATE)
#undef PHX_CREATE
  return UnsupportedArchitecture(context.config->architecture);
}

}  // namespace phalanx
