// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_session.h"

#include <utility>

namespace byre::qmp {

namespace {

constexpr std::string_view kNegotiate = "qmp_capabilities";
constexpr std::string_view kGeneric = "GenericError";
constexpr std::string_view kNotFound = "CommandNotFound";

/// Commands of QEMU's storage daemon that are not here, and why.
std::string_view why_not(std::string_view name) {
  struct Refused {
    std::string_view name, why;
  };
  static constexpr Refused kRefused[] = {
      {"drive-mirror", "add the target with blockdev-add, and use blockdev-mirror"},
      {"drive-backup", "add the target with blockdev-add, and use blockdev-backup"},
      {"x-blockdev-amend",
       "of a qcow2 image it changes the encryption, which is not supported; byre amend changes the "
       "rest while nobody uses the image"},
      {"blockdev-snapshot-internal-sync",
       "internal snapshots are made while nobody uses the image: byre snapshot create"},
      {"blockdev-snapshot-delete-internal-sync",
       "internal snapshots are deleted while nobody uses the image: byre snapshot delete"},
      {"blockdev-set-active", "nodes are not handed over to other processes: delete the node"},
      {"x-blockdev-change", "there is no quorum"},
      {"x-blockdev-set-iothread", "one thread serves all nodes"},
      {"chardev-add", "chardevs are options of the command line"},
      {"chardev-change", "chardevs are options of the command line"},
      {"chardev-remove", "chardevs are options of the command line"},
      {"chardev-send-break", "chardevs are options of the command line"},
      {"query-chardev-backends", "chardevs are options of the command line"},
      {"ringbuf-read", "there is no ring buffer"},
      {"ringbuf-write", "there is no ring buffer"},
      {"qom-list-properties", "qom-list tells what an object has"},
      {"qom-list-types", "object-add's types are in query-qmp-schema"},
      {"qom-set", "objects stay as they were made: object-del, then object-add"},
  };
  for (const Refused& one : kRefused) {
    if (one.name == name) return one.why;
  }
  return {};
}

/// What is wrong with the members of a request; empty: nothing.
std::string find_fault(const Json& request) {
  if (!request.is_object()) return "QMP input must be a JSON object";
  for (const auto& [name, value] : request.items()) {
    if (name == "execute") {
      if (!value.is_string()) return "QMP input member 'execute' must be a string";
    } else if (name == "arguments") {
      if (!value.is_object()) return "QMP input member 'arguments' must be an object";
    } else if (name != "id") {
      return cat("QMP input member '", name, "' is unexpected");
    }
  }
  return request.contains("execute") ? "" : "QMP input lacks member 'execute'";
}

}  // namespace

Session::Session(Reactor& reactor, Channel& channel, Realm& realm, Options options)
    : reactor_(reactor),
      channel_(channel),
      realm_(realm),
      options_(options),
      stream_(options.limits),
      wake_(reactor.ready()),
      drained_(reactor.ready()),
      writer_(reactor.ready()),
      helpers_(reactor.ready()) {}

Task<void> Session::run() {
  writer_.spawn(write());
  put({{"QMP", {{"version", realm_.version}, {"capabilities", Json::array()}}}});
  Result<void> talked = co_await talk().result();
  closing_ = true;
  negotiated_ = false;  // No event behind the last answer.
  wake_.notify();
  helpers_.spawn(hang_up_later(linger_));
  co_await writer_.join();
  if (linger_.pending) reactor_.cancel(linger_);
  channel_.shutdown();
  co_await helpers_.join();
  if (failure_) co_await fail(std::move(failure_));
  if (!stopping_) co_await std::move(talked);
}

void Session::stop() {
  stopping_ = true;
  channel_.stop_receiving();
  drained_.notify();
}

Task<void> Session::hang_up_later(Op& timer) {
  if (options_.linger_ns == 0 || writer_.running() == 0) co_return;
  timer = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + options_.linger_ns};
  co_await reactor_.perform(timer);
  channel_.shutdown();
}

Task<void> Session::talk() {
  std::array<std::byte, kPieceSize> piece;
  while (!stopping_) {
    const size_t got = co_await channel_.receive_some(piece);
    if (got == 0) co_return;
    descriptors_.arrived(channel_.take_passed());
    stream_.feed(text_of(Bytes(piece).first(got)));
    for (;;) {
      while (pending_.size() > kLowWater && !dead_ && !stopping_) co_await drained_.wait();
      if (stopping_) co_return;
      const Message message = stream_.next(reactor_.now());
      if (message.kind == Message::Kind::none) break;
      if (message.kind == Message::Kind::value) {
        co_await obey(message.value);
        continue;
      }
      refuse(kGeneric, message.problem, nullptr);
      if (message.kind == Message::Kind::broken) co_await fail(invalid(message.problem));
    }
  }
}

Task<void> Session::obey(const Json& request) {
  const Json id = request.is_object() && request.contains("id") ? request["id"] : Json();
  if (const std::string fault = find_fault(request); !fault.empty()) {
    refuse(kGeneric, fault, id);
    co_return;
  }
  const std::string& name = text_in(request["execute"]);
  if (!negotiated_ && name != kNegotiate) {
    refuse(kNotFound, "Expecting capabilities negotiation with 'qmp_capabilities'", id);
  } else if (negotiated_ && name == kNegotiate) {
    refuse(kNotFound, "Capabilities negotiation is already complete, command ignored", id);
  } else {
    co_await execute(name, request.value("arguments", Json::object()), id);
  }
}

Task<void> Session::execute(std::string name, Json arguments, Json id) {
  const AnyCommand* const command = realm_.commands.find(name);
  if (!command) {
    const std::string_view why = why_not(name);
    refuse(kNotFound,
           cat("The command ", name, " has not been found", why.empty() ? "" : ": ", why), id);
    co_return;
  }
  Mutex::Hold turn;
  if (!command->at_once) turn = co_await realm_.turn.lock();
  if (realm_.ending) {
    refuse(kGeneric, "The daemon is about to end", id);
    co_return;
  }
  Call call{.owner = realm_.daemon, .descriptors = descriptors_};
  Result<Json> done = co_await command->run(call, arguments).result();
  if (!done) {
    refuse(call.failure_class, done.error().message(), id);
    co_return;
  }
  answer(*std::move(done), id);
  if (name == kNegotiate) negotiated_ = true;
}

void Session::answer(Json result, const Json& id) {
  Json message = {{"return", result.is_null() ? Json::object() : std::move(result)}};
  if (!id.is_null()) message["id"] = id;
  put(message);
}

void Session::refuse(std::string_view failure_class, std::string_view why, const Json& id) {
  Json message = {{"error", {{"class", failure_class}, {"desc", why}}}};
  if (!id.is_null()) message["id"] = id;
  put(message);
}

void Session::send_event(const Json& event) {
  if (!negotiated_ || dead_) return;
  put(event);
  if (pending_.size() <= kPendingMax) return;
  dead_ = true;
  pending_.clear();
  failure_ = Error(Errc::io, "the client does not read its events");
  channel_.shutdown();
  drained_.notify();
}

void Session::put(const Json& message) {
  if (dead_) return;
  pending_ += text_of_json(message, options_.pretty);
  pending_ += "\r\n";
  wake_.notify();
}

Task<void> Session::write() {
  while (!dead_) {
    if (pending_.empty()) {
      if (closing_) co_return;
      co_await wake_.wait();
      continue;
    }
    const std::string now = std::exchange(pending_, {});
    const Result<void> sent = co_await channel_.send_all(bytes_of(std::string_view(now))).result();
    // Who has hung up may have sent requests before: they are carried out.
    if (!sent) dead_ = true;
    drained_.notify();
  }
}

}  // namespace byre::qmp
