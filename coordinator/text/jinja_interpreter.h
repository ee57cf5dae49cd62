// Runs a parsed template.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_ast.h"

namespace phalanx::jinja {

// `variables`: the template's globals. Errors as ChatTemplate::Render.
absl::StatusOr<std::string> Run(const Program& program, Dict variables);

}  // namespace phalanx::jinja
