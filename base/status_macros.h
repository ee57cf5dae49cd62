// PHX_RETURN_IF_ERROR(expr) and PHX_ASSIGN_OR_RETURN(lhs, expr) for absl::Status and absl::StatusOr.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define PHX_CONCAT_INNER_(a, b) a##b
#define PHX_CONCAT_(a, b) PHX_CONCAT_INNER_(a, b)

#define PHX_RETURN_IF_ERROR(expr)                                                   \
  do {                                                                              \
    if (::absl::Status phx_status_ = (expr); !phx_status_.ok()) return phx_status_; \
  } while (false)

#define PHX_ASSIGN_OR_RETURN(lhs, expr) PHX_ASSIGN_OR_RETURN_IMPL_(PHX_CONCAT_(phx_or_, __LINE__), lhs, expr)
#define PHX_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  if (!tmp.ok()) return std::move(tmp).status();   \
  lhs = *std::move(tmp)
