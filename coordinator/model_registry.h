// The models that are served, by name.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "coordinator/loaded_model.h"

namespace phalanx::coordinator {

// Thread safety: safe.
class ModelRegistry {
 public:
  // AlreadyExists.
  absl::Status Add(std::shared_ptr<const LoadedModel> model);
  // NotFound.
  absl::Status Remove(const std::string& name);
  // An empty name finds the only model. NotFound naming the models there are; InvalidArgument for an empty
  // name among several.
  absl::StatusOr<std::shared_ptr<const LoadedModel>> Find(const std::string& name) const;
  std::vector<std::shared_ptr<const LoadedModel>> All() const;

 private:
  mutable Mutex mu_;
  std::map<std::string, std::shared_ptr<const LoadedModel>, std::less<>> models_ ABSL_GUARDED_BY(mu_);
};

}  // namespace phalanx::coordinator
