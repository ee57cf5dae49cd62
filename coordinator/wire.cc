#include "coordinator/wire.h"

#include <google/protobuf/stubs/logging.h>

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/logging.h"
#include "phalanx/internal/v1/rich_status.pb.h"

namespace phalanx::coordinator {
namespace {

// What protobuf last complained of on this thread, while somebody listens.
thread_local std::string* t_complaint = nullptr;

void Log(google::protobuf::LogLevel level, const char*, int, const std::string& message) {
  if (t_complaint != nullptr) *t_complaint = message;
  const std::string line = absl::Utf8SafeCEscape(message);
  if (level >= google::protobuf::LOGLEVEL_ERROR) {
    spdlog::warn("protobuf: {}", line);
  } else {
    spdlog::debug("protobuf: {}", line);
  }
}

}  // namespace

void LogProtobuf() { google::protobuf::SetLogHandler(&Log); }

absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ProtoBufferReader reader(const_cast<grpc::ByteBuffer*>(&bytes));  // its type is not const
  std::string complaint;
  t_complaint = &complaint;
  const bool parsed = reader.status().ok() && message->ParseFromZeroCopyStream(&reader);
  t_complaint = nullptr;
  if (parsed) return absl::OkStatus();
  // "String field 'phalanx.v1.GenerateRequest.text' contains invalid UTF-8 data when ..."
  constexpr char kField[] = "String field '";
  const size_t begin = complaint.find(kField);
  const size_t end = begin == std::string::npos ? begin : complaint.find('\'', begin + sizeof(kField) - 1);
  if (end == std::string::npos || !absl::StrContains(complaint, "UTF-8")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request is no ", message->GetDescriptor()->full_name()));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      complaint.substr(begin + sizeof(kField) - 1, end - begin - sizeof(kField) + 1), " is not UTF-8"));
}

grpc::ByteBuffer Serialize(const google::protobuf::Message& message) {
  grpc::ByteBuffer out;
  bool own = false;
  // Fails for messages of 2 GiB and more only.
  grpc::GenericSerialize<grpc::ProtoBufferWriter, google::protobuf::Message>(message, &out, &own);
  return out;
}

grpc::Status ToGrpcWithRetry(const absl::Status& status, int64_t delay_ms) {
  internal::v1::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(delay_ms / 1000);
  retry.mutable_retry_delay()->set_nanos(static_cast<int32_t>(delay_ms % 1000) * 1'000'000);
  internal::v1::RichStatus rich;
  rich.set_code(static_cast<int32_t>(status.code()));
  rich.set_message(std::string(status.message()));
  google::protobuf::Any* any = rich.add_details();
  any->set_type_url("type.googleapis.com/google.rpc.RetryInfo");
  any->set_value(retry.SerializeAsString());
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), rich.message(), rich.SerializeAsString());
}

}  // namespace phalanx::coordinator
