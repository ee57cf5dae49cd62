#include "coordinator/model_registry.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace phalanx::coordinator {

absl::Status ModelRegistry::Add(std::shared_ptr<const LoadedModel> model) {
  MutexLock lock(mu_);
  const std::string& name = model->spec.name;
  if (models_.contains(name)) {
    return absl::AlreadyExistsError(
        absl::StrCat("a model named '", name, "' is loaded; unload it first or choose another name"));
  }
  models_[name] = std::move(model);
  return absl::OkStatus();
}

absl::Status ModelRegistry::Remove(const std::string& name) {
  MutexLock lock(mu_);
  const auto it = models_.find(name);
  if (it == models_.end()) return absl::NotFoundError(absl::StrCat("no model named '", name, "' is loaded"));
  models_.erase(it);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> ModelRegistry::Find(const std::string& name) const {
  MutexLock lock(mu_);
  if (const auto it = models_.find(name); it != models_.end()) return it->second;
  if (models_.empty()) {
    return absl::NotFoundError(name.empty() ? std::string("no model is loaded")
                                            : absl::StrCat("model '", name, "' is not loaded; no model is"));
  }
  if (name.empty() && models_.size() == 1) return models_.begin()->second;
  const std::string names =
      absl::StrJoin(models_, ", ", [](std::string* out, const auto& entry) { out->append(entry.first); });
  if (name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model is empty, but several are loaded; name one of: ", names));
  }
  return absl::NotFoundError(
      absl::StrCat("model '", name.substr(0, 256), "' is not loaded; loaded: ", names));
}

std::vector<std::shared_ptr<const LoadedModel>> ModelRegistry::All() const {
  MutexLock lock(mu_);
  std::vector<std::shared_ptr<const LoadedModel>> out;
  for (const auto& [name, model] : models_) out.push_back(model);
  return out;
}

}  // namespace phalanx::coordinator
