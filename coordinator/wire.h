// Messages from clients that may be none: what is wrong with them becomes a status and a line of the log.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>

#include "absl/status/status.h"

namespace phalanx::coordinator {

// Sends protobuf's complaints to our log, of the whole process. Idempotent.
void LogProtobuf();

// InvalidArgument naming the message and, for text that is not UTF-8, its field. Takes the buffer's bytes.
absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);
grpc::ByteBuffer Serialize(const google::protobuf::Message& message);

// As ToGrpc, with when to try again as google.rpc.RetryInfo in the status' details.
grpc::Status ToGrpcWithRetry(const absl::Status& status, int64_t delay_ms);

}  // namespace phalanx::coordinator
