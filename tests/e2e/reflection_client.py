"""A client that knows nothing but the server's reflection service: no .proto file, no generated code."""

import time

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

CALL_SECONDS = 60


class Answer:
    """The responses of one Generate call, and how it ended."""

    def __init__(self):
        self.started = self.finished = self.error = None
        self.chunks, self.prompt_logprobs, self.order = [], [], []
        self.finishes = {}  # by choice

    def add(self, response):
        event = response.WhichOneof("event")
        self.order.append(event)
        value = getattr(response, event)
        if event == "chunk":
            self.chunks.append(value)
        elif event == "prompt_logprobs":
            self.prompt_logprobs.append(value)
        else:
            setattr(self, event, value)
            if event == "finished":
                assert value.index not in self.finishes, f"choice {value.index} finished twice"
                self.finishes[value.index] = value

    @property
    def ids(self):
        return [token for chunk in self.chunks for token in chunk.token_ids]

    @property
    def text(self):
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def reasoning(self):
        return "".join(chunk.reasoning for chunk in self.chunks)

    def of_choice(self, index):
        """(ids, text) of one choice."""
        chunks = [chunk for chunk in self.chunks if chunk.index == index]
        for before, chunk in zip([None, *chunks], chunks):
            assert chunk.offset == (before.offset + len(before.token_ids) if before else 0)
        return [token for chunk in chunks for token in chunk.token_ids], "".join(chunk.text for chunk in chunks)

    @property
    def logprobs(self):
        return [position for chunk in self.chunks for position in chunk.logprobs]

    @property
    def reason(self):
        return self.finished and self.finished.DESCRIPTOR.fields_by_name["reason"].enum_type.values_by_number[
            self.finished.reason].name.removeprefix("FINISH_REASON_")

    @property
    def code(self):
        return self.error.code() if self.error else grpc.StatusCode.OK

    @property
    def details(self):
        return self.error.details() if self.error else ""


class Stream:
    """A Generate call under way. Iterating reads responses into `answer`; an error ends the iteration."""

    def __init__(self, call):
        self.call, self.answer = call, Answer()

    def __iter__(self):
        try:
            for response in self.call:
                self.answer.add(response)
                yield response
        except grpc.RpcError as error:
            self.answer.error = error

    def read_tokens(self, count):
        """Reads until so many tokens came; fails if the stream ends before."""
        for _ in self:
            if len(self.answer.ids) >= count:
                return self
        raise AssertionError(f"the stream ended after {len(self.answer.ids)} tokens: {self.answer.error}")

    def result(self):
        for _ in self:
            pass
        return self.answer

    def cancel(self):
        self.call.cancel()


class Client:
    def __init__(self, target):
        self.channel = grpc.insecure_channel(target, options=[
            ("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 200)])
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))

    def close(self):
        self.channel.close()

    def method(self, name):
        """'phalanx.v1.Inference/Generate' -> (callable, request class)."""
        service, method = name.split("/")
        descriptor = self.pool.FindServiceByName(service).methods_by_name[method]
        request = message_factory.GetMessageClass(descriptor.input_type)
        response = message_factory.GetMessageClass(descriptor.output_type)
        make = self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        return make(f"/{name}", request.SerializeToString, response.FromString), request

    def call(self, name, request=None, timeout=CALL_SECONDS):
        function, message = self.method(name)
        return function(json_format.ParseDict(request or {}, message()), timeout=timeout)

    def stream(self, timeout=CALL_SECONDS, **request):
        """Generate; the request's fields are keyword arguments, nested ones dicts."""
        return Stream(self.call("phalanx.v1.Inference/Generate", request, timeout))

    def generate(self, timeout=CALL_SECONDS, **request):
        return self.stream(timeout, **request).result()

    def status(self):
        return self.call("phalanx.v1.Cluster/GetStatus", timeout=10)

    def load(self, **spec):
        return self.call("phalanx.v1.Cluster/LoadModel", {"spec": spec}, timeout=10).spec

    def unload(self, name):
        return self.call("phalanx.v1.Cluster/UnloadModel", {"name": name}, timeout=10)

    def group_state(self, group):
        enum = group.DESCRIPTOR.fields_by_name["state"].enum_type
        return enum.values_by_number[group.state].name.removeprefix("GROUP_STATE_")

    def worker_state(self, worker):
        enum = worker.DESCRIPTOR.fields_by_name["state"].enum_type
        return enum.values_by_number[worker.state].name.removeprefix("WORKER_STATE_")


def wait_for(condition, seconds, what):
    """Polls until condition() is true and returns its value; fails with `what`, called if it can be, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.02)
    return value
