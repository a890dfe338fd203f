// SPDX-License-Identifier: Apache-2.0
#include "daemon/qmp_client.h"

#include <cerrno>
#include <utility>

#include "base/cat.h"
#include "coro/scope.h"

namespace byre::qmp {

namespace {

Error no_qmp(std::string_view what) {
  return Error(Errc::unsupported, cat("what answers there does not speak QMP: ", what,
                                      "; name the socket of a --chardev that a --monitor uses"));
}

Error hung_up() { return Error(Errc::io, "the daemon has hung up: it has ended, or does so"); }

/// What has happened to a connection on which a system call failed.
Error broken(Error error) {
  if (error.sys_errno() == ECONNRESET || error.sys_errno() == EPIPE) return hung_up();
  return std::move(error).while_doing("the connection to the daemon broke");
}

Errc code_of(std::string_view failure_class) {
  if (failure_class == "CommandNotFound") return Errc::unsupported;
  const bool missing = failure_class == "DeviceNotFound" || failure_class == "DeviceNotActive";
  return missing ? Errc::not_found : Errc::invalid;
}

/// A member that is text; empty when it is not there, or no text.
std::string text_at(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? text_in(*found) : std::string();
}

}  // namespace

Client::Client(Reactor& reactor, Socket socket, Options options)
    : reactor_(reactor),
      options_(options),
      channel_(reactor, std::move(socket)),
      stream_(options.limits) {}

void Client::stop() {
  stopped_ = true;
  channel_.stop_receiving();
}

Task<void> Client::give_up_later(Op& timer) {
  timer = Op{.kind = Op::Kind::timer, .deadline = reactor_.now() + options_.greeting_ns};
  if (co_await reactor_.perform(timer) == -ECANCELED) co_return;
  late_ = true;
  channel_.stop_receiving();
}

Task<Json> Client::next() {
  for (;;) {
    Message message = stream_.next(reactor_.now());
    if (message.kind == Message::Kind::value && message.value.is_object()) {
      co_return std::move(message.value);
    }
    if (message.kind == Message::Kind::value) co_return no_qmp("it sent no object");
    if (message.kind != Message::Kind::none) co_return no_qmp(message.problem);
    Result<size_t> got = co_await channel_.receive_some(piece_).result();
    if (stopped_) co_return Error(Errc::cancelled, "the daemon was not waited for");
    if (late_) {
      co_return Error(Errc::busy,
                      cat("no greeting came in ", options_.greeting_ns / kSecond,
                          " seconds: a monitor has one client at a time, and another may be using "
                          "it; give the daemon one more --chardev and --monitor, and name that"));
    }
    if (!got) co_return broken(std::move(got).error());
    if (*got == 0) co_return hung_up();
    const std::string_view text = text_of(Bytes(piece_).first(*got));
    if (!std::exchange(heard_, true) && !text.starts_with('{')) {
      co_return no_qmp(cat("it began with ", byre::quoted(text.substr(0, 32))));
    }
    stream_.feed(text);
  }
}

Task<Json> Client::greeting() {
  Op timer;
  Scope scope(reactor_.ready());
  scope.spawn(give_up_later(timer));
  Result<Json> came = co_await next().result();
  if (timer.pending) reactor_.cancel(timer);
  co_await scope.join();
  co_return std::move(came);
}

Task<void> Client::negotiate() {
  const Json came = co_await greeting();
  const auto greeting = came.find("QMP");
  if (greeting == came.end() || !greeting->is_object()) {
    co_await fail(no_qmp("its first object is no greeting"));
  }
  (void)co_await ask("qmp_capabilities", Json::object());
}

Task<Json> Client::ask(std::string command, Json arguments) {
  refusal_.clear();
  const uint64_t id = ++id_;
  Json request = {{"execute", std::move(command)}, {"id", id}};
  if (!arguments.empty()) request["arguments"] = std::move(arguments);
  const std::string text = cat(text_of_json(request), "\n");
  Result<void> sent = co_await channel_.send_all(bytes_of(std::string_view(text))).result();
  if (!sent) co_return broken(std::move(sent).error());
  for (;;) {
    Json came = co_await next();
    if (came.contains("event")) {
      if (events_.size() == kEventsMax) events_.erase(events_.begin());
      events_.push_back(std::move(came));
      continue;
    }
    const auto failure = came.find("error");
    const auto result = came.find("return");
    if (failure == came.end() && result == came.end()) {
      co_return no_qmp("an answer has neither 'return' nor 'error'");
    }
    const auto about = came.find("id");
    if (about != came.end() && *about != id) continue;
    if (result != came.end()) co_return std::move(*result);
    if (!failure->is_object()) co_return no_qmp("an error is no object");
    refusal_ = text_at(*failure, "class");
    if (refusal_.empty()) refusal_ = "GenericError";
    std::string why = text_at(*failure, "desc");
    if (why.empty()) why = cat("it was refused, and not said why (", refusal_, ")");
    co_return Error(code_of(refusal_), std::move(why));
  }
}

}  // namespace byre::qmp
